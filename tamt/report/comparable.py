"""Which runs can be averaged: those of one version of tamt with the same settings. And their labels in the report."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tamt.data.tasks import TASKS
from tamt.methods import METHODS, is_one_shot
from tamt.report.results import Results
from tamt.report.scan import FinishedRun
from tamt.report.variants import initial_mask
from tamt.runtime.names import distinct

EFFECTIVE_BATCH = "effective batch"
"""The blocks or rows of an optimizer step: `batch_size` × `accumulation` × `processes_of_step`."""
SEARCH_SETTINGS = (
    "corpus",
    EFFECTIVE_BATCH,
    "max_length",
    "recipe",
    "lr",
    "dropout",
    "initial",
    "precision",
    "ranking",
    "threshold_every",
    "prune_pooler",
    "dense_embedding",
    "head",
    "head_warmup_steps",
)
"""What searches by one method must share to be averaged, beside the settings that figures show."""
ONE_SHOT_SETTINGS = ("prune_pooler", "dense_embedding")
"""The same for one-shot methods."""
CALIBRATED_SETTINGS = ("corpus", "max_length", *ONE_SHOT_SETTINGS)
"""The same for one-shot methods that read text."""
FINETUNE_SETTINGS = (
    "epochs",
    EFFECTIVE_BATCH,
    "max_length",
    "warmup",
    "recipe",
    "regression_start",
    "weight_decay",
    "eval_every",
    "early_stop",
    "stride",
    "n_best",
    "max_answer_length",
    "precision",
    "data_dir",
    "train_file",
    "dev_file",
    "text_column",
    "label_column",
)
"""What fine-tunings on one task must share to be averaged, beside the list of learning rates."""

TASK_DEFAULTS = ("epochs", "max_length", "eval_every")
"""Settings of a fine-tuning that its task gives where they are left out."""

Settings = tuple[tuple[str, Any], ...]


def keep_most_common_version(results: Results, runs: list[FinishedRun]) -> list[FinishedRun]:
    """The runs by the version of tamt that wrote most of them; the others are skipped."""
    common = Counter(run.version for run in runs).most_common(1)[0][0]
    for run in runs:
        if run.version != common:
            results.skip(run.name, f"{_written_by(run.version)}, most others {_written_by(common)}")
    return [run for run in runs if run.version == common]


def _written_by(version: str | None) -> str:
    return f"was written by tamt {version or '(unknown)'}"


def keep_shared_settings(results: Results, runs: list[FinishedRun]) -> list[FinishedRun]:
    """The runs of each model and method (variant), or model and task, with the settings that most of them have.

    The others are skipped. The settings are added to `results`.
    """
    groups: dict[tuple[str, str, str | None], list[tuple[FinishedRun, Settings]]] = {}
    for run in runs:
        key = (run.model, run.task or str(run.config["method"]), run.variant)
        groups.setdefault(key, []).append((run, _settings(run)))
    kept = []
    for (model, name, variant), members in groups.items():
        common = Counter(settings for _, settings in members).most_common(1)[0][0]
        for run, settings in members:
            if settings == common:
                kept.append(run)
                continue
            differing = [(own, other) for own, other in zip(settings, common, strict=True) if own != other]
            own, others = (_in_words(side) for side in zip(*differing, strict=True))
            results.skip(run.name, f"has {own} where most runs of {name} have {others}; they are not averaged")
        results.settings += [(model, name, variant, key, plain(value)) for key, value in common if value is not None]
    return kept


def _settings(run: FinishedRun) -> Settings:
    """The settings of a run that must be shared, with their values."""
    names: Iterable[str] = SEARCH_SETTINGS
    if "task" in run.config:
        names = FINETUNE_SETTINGS
    elif is_one_shot(method := run.config["method"]):
        names = CALIBRATED_SETTINGS if METHODS[method].needs_text else ONE_SHOT_SETTINGS
    return tuple((name, _value(run.config, name)) for name in names)


def _value(config: Mapping[str, Any], name: str) -> Any:
    """A setting of a run; that of its task where it was left out."""
    if name == EFFECTIVE_BATCH:
        return _effective_batch(config)
    value, task = config.get(name), TASKS.get(str(config.get("task")))
    if value is None and task and name in TASK_DEFAULTS:
        value = getattr(task, name)
    if name == "initial":
        return initial_mask(config)
    if name == "regression_start":  # runs from before there was a choice started at zero
        return (value or "zero") if task and task.kind == "regression" else None
    return None if value is False else hashable(value)  # configs of older versions lack newer switches


def _in_words(settings: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {'by default' if value is None else plain(value)}" for name, value in settings)


def _effective_batch(config: Mapping[str, Any]) -> Any:
    """The blocks or rows of an optimizer step. None if no batch size is known, the factors if they are not numbers."""
    task = TASKS.get(str(config.get("task")))
    size = config.get("batch_size") or (task.batch_size if task else None)
    factors = [size, config.get("accumulation") or 1, config.get("processes_of_step") or 1]
    if all(isinstance(factor, int) for factor in factors):
        return math.prod(factors)
    return None if factors == [None, 1, 1] else hashable(factors)


def with_labels(results: Results, runs: list[FinishedRun]) -> list[FinishedRun]:
    """The runs with labels for their models and tasks; two models or tasks never share a label.

    A model or file that is a path counts as the same only if its configs name the same path.
    """
    short_models = {_model(run): Path(_model(run)).name if _is_path(_model(run)) else _model(run) for run in runs}
    models = {full: name if _is_path(full) else full for full, name in distinct(short_models).items()}
    tasks = distinct({_task(run): _task(run, short=True) for run in runs if "task" in run.config})
    results.settings += [
        (label, "", None, "model", full) for full, label in models.items() if label != short_models[full]
    ]
    return [replace(run, model=models[_model(run)], task=tasks.get(_task(run), "")) for run in runs]


def _model(run: FinishedRun) -> str:
    return str(run.config.get("model")).rstrip("/")


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~"))


def _task(run: FinishedRun, short: bool = False) -> str:
    """The task of a run. For your own files with the name of the train file, or of its folder if that is `train`."""
    task, train_file = str(run.config.get("task")), run.config.get("train_file")
    if not train_file:
        return task
    path = Path(str(train_file))
    name = path.parent.name if path.stem == "train" and path.parent.name else path.stem
    return f"{task} of {name if short else path}"


def hashable(value: Any) -> Any:
    """A value from YAML with tuples instead of lists."""
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def plain(value: Any) -> str:
    """A setting as text: the items of a tuple with spaces between them."""
    if isinstance(value, tuple):
        return " ".join(plain(item) for item in value if item not in (None, ""))
    return str(value)
