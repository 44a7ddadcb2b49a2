"""Saved fine-tuned models, opened again with their task for evaluation and prediction."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.glue import load_dev_rows
from tamt.data.rows import Rows
from tamt.data.squad import Question, load_questions
from tamt.data.tasks import Kind, Task, find_task, with_columns
from tamt.finetuning.classification import Classification, Encoded, encode_dev
from tamt.finetuning.loop import MODEL_FOLDER, SPARE_MEMORY, Job
from tamt.finetuning.metrics import scores_in_words
from tamt.finetuning.question_answering import MAX_ANSWER_LENGTH, N_BEST, QuestionAnswering, make_windows
from tamt.models.loading import is_sparse
from tamt.models.sparse import run_sparse
from tamt.models.task_models import load_finetuned
from tamt.models.tokenizer import UNLIMITED, input_length, load_tokenizer
from tamt.options.evaluate import EvaluateOptions
from tamt.options.predict import PredictOptions
from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import read_yaml
from tamt.training.compute import Compute, report_compute, set_up
from tamt.training.half_precision import check_runs
from tamt.training.precision import choose_precision
from tamt.training.run_folder import CONFIG, RESULTS

Dev = dict[str, Rows] | list[Question]
"""Rows by the name of their set, the main one first; or questions."""

TASK_OF_KIND: dict[Kind, str] = {
    "classification": "classification",
    "regression": "regression",
    "question-answering": "squad",
}
"""The task of a fine-tuned model if neither a run folder nor the user names one."""
NAMELESS = re.compile(r"(LABEL_)?\d+")
"""Names that transformers gives to labels without names."""


@dataclass(frozen=True)
class RunSettings:
    """The settings of a fine-tuning that its model is used with again; None for those that are not known."""

    task: str | None = None
    text_column: list[str] | None = None
    label_column: str | None = None
    batch_size: int | None = None
    stride: int | None = None
    n_best: int | None = None
    max_answer_length: int | None = None
    data_dir: str | None = None
    dev_file: str | None = None

    @classmethod
    def read(cls, config: Path) -> "RunSettings":
        """Read a run's `config.yaml`."""
        content = read_yaml(config)
        return cls(**{field.name: content.get(field.name) for field in fields(cls)})


@dataclass
class FineTuned:
    """A fine-tuned model with the task that it is used for.

    Attributes:
        name: what the user calls the model.
        task: with the columns of the rows, the labels and the batch size.
        output_of_label: see `Classification`.
        settings: of the run that fine-tuned the model on this task, if there is one.
        length: tokens per input.
    """

    name: str
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    compute: Compute
    output_of_label: Sequence[int] | None
    settings: RunSettings
    length: int

    def prepare(self, dev: Dev, labelled: bool = True) -> Job:
        """Prepare rows or questions for the model, as fine-tuning does.

        Args:
            dev: the rows or questions.
            labelled: whether the answers to the questions are known.

        Raises:
            UserError: the model cannot read them.
        """
        few: Dev = dev[:1] if isinstance(dev, list) else {"": _two(next(iter(dev.values())))}
        check_runs(self.model, self.name, self.compute, self._job(few, labelled).evaluate)
        return self._job(dev, labelled)

    def _job(self, dev: Dev, labelled: bool) -> Job:
        shared: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "compute": self.compute,
            "batch_size": self.task.batch_size,
            "step_rows": self.task.batch_size,
            "seed": 0,
        }
        if isinstance(dev, dict):
            rows = encode_dev(dev, self.tokenizer, self.model, self.length)
            return Classification(train=Encoded([], []), dev=rows, output_of_label=self.output_of_label, **shared)
        settings = self.settings
        stride = self.length // 3 if settings.stride is None else settings.stride
        return QuestionAnswering(
            train=[],
            dev=make_windows(dev, self.tokenizer, self.model, self.length, stride),
            questions=dev,
            n_best=settings.n_best or N_BEST,
            max_answer_length=settings.max_answer_length or MAX_ANSWER_LENGTH,
            labelled=labelled,
            **shared,
        )

    def result(self, rows: int, scores: Mapping[str, float | None], started: float) -> dict:
        """The row of results, after logging the scores; unlabelled rows have no scores."""
        if scores:
            say(scores_in_words(scores))
        metric = self.task.metrics[0]
        return {
            "model": self.name,
            "task": self.task.name,
            "rows": rows,
            "metric": metric if scores else None,
            "score": scores.get(metric),
            "dev": dict(scores),
            "precision": self.compute.precision,
            "seconds": round(time.monotonic() - started, 1),
        }


def open_finetuned(options: EvaluateOptions | PredictOptions) -> FineTuned:
    """Open the fine-tuned model of a command. Options left open are those of the run, or the task's defaults.

    Raises:
        UserError: there is no fine-tuned model, or none for this task; see also `find_task`, `with_columns`,
            `input_length` and `tamt.training.compute.set_up`.
    """
    name, task = options.model, options.task
    source, settings = run_of(name)
    precision = choose_precision(options.precision, Path(name), resume=True)
    if task not in (None, settings.task):
        settings = RunSettings()
    compute = set_up(precision, 0, SPARE_MEMORY)
    with processes.one_first():
        tokenizer = load_tokenizer(source, masking=False)
        model = load_finetuned(source)
    kind = _kind_of(model, name)
    chosen = find_task(task or settings.task or TASK_OF_KIND[kind])
    if chosen.kind != kind:
        raise UserError(
            f"{name} does {kind} and the task {chosen.name} is {chosen.kind}; give a model that was fine-tuned on "
            f"{chosen.name}, or another --task"
        )
    texts, label = options.text_column or settings.text_column, options.label_column or settings.label_column
    chosen = with_columns(chosen, texts, label)
    chosen = replace(chosen, batch_size=options.batch_size or settings.batch_size or chosen.batch_size)
    output_of_label = None
    if kind == "classification":
        labels = tuple(str(model.config.id2label.get(i, i)) for i in range(model.config.num_labels))
        chosen = replace(chosen, label_names=chosen.label_names or labels)
        output_of_label = _outputs(chosen, labels, name)
    saved_with = tokenizer.model_max_length
    default = saved_with if saved_with < UNLIMITED else chosen.max_length
    length = input_length(model, tokenizer, name, options.max_length, default)
    report_compute(compute, options.precision if source == name else precision)
    model.to(compute.device)
    if options.sparse or is_sparse(source):
        run_sparse(model, name, compute.dtype)
    return FineTuned(name, chosen, model, tokenizer, compute, output_of_label, settings, length)


def score_finetuned(
    saved: FineTuned, data_dir: Path | None = None, dev_file: Path | None = None, started: float = 0.0
) -> dict:
    """The row of results for a fine-tuned model on the dev rows given, or those of its run.

    Raises:
        UserError: see `load_dev_rows` and `load_questions`.
    """
    if data_dir is None and dev_file is None:
        data_dir, dev_file = (
            Path(path) if path else None for path in (saved.settings.data_dir, saved.settings.dev_file)
        )
    task = saved.task
    if task.kind == "question-answering" and dev_file is not None:
        raise UserError(f"--dev-file is for --task classification or regression, not {task.name}; give --data-dir")
    dev: Dev
    with processes.one_first():
        if task.kind == "question-answering":
            dev = load_questions(task.held_out, data_dir)["dev"]
            rows = len(dev)
        else:
            dev = load_dev_rows(task, data_dir, dev_file)
            rows = sum(map(len, dev.values()))
    return saved.result(rows, saved.prepare(dev).evaluate(), started)


def _two(rows: Rows) -> Rows:
    return Rows(rows.texts[:2], rows.labels[:2])


def run_of(name: str) -> tuple[str, RunSettings]:
    """The folder or hub name of the model `name`, and the settings of its run if `name` is a run folder."""
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        runs = sorted([*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")])
        if runs and not (folder / "config.json").is_file():
            raise UserError(f"{name} holds several runs; give one of them, such as {runs[0].parent}")
        return name, RunSettings()
    settings = RunSettings.read(folder / CONFIG)
    if settings.task is None:
        raise UserError(f"the run in {name} is a search and no fine-tuning; give a run of tamt finetune")
    if not (folder / MODEL_FOLDER).is_dir():
        if (folder / RESULTS).is_file():
            raise UserError(
                f"the run in {name} is finished and its model was dropped, as studies do; move its folder away, set "
                "keep_models: true in the study, and give tamt sweep again"
            )
        raise UserError(f"the run in {name} has no model yet; continue it with tamt finetune --resume")
    if not (folder / RESULTS).is_file():
        say(f"the run in {name} is not finished; the best model of its evaluations so far is used")
    return str(folder / MODEL_FOLDER), settings


def _kind_of(model: PreTrainedModel, name: str) -> Kind:
    """The kind of task of a fine-tuned model, by its class and configuration."""
    if "QuestionAnswering" in type(model).__name__:
        return "question-answering"
    config = model.config
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if problem == "regression" and config.num_labels == 1:
        return "regression"
    if problem == "single_label_classification":
        return "classification"
    raise UserError(
        f"{name} gives {config.num_labels} outputs that are {problem}; give a model with one label or one number a row"
    )


def _outputs(task: Task, labels: Sequence[str], name: str) -> list[int] | None:
    """The output of a model for each label of a task, by the labels' names; None if they are in the task's order."""
    names = task.label_names or ()
    known, wanted = [label.lower() for label in labels], [label.lower() for label in names]
    if known == wanted:
        return None
    if sorted(known) == sorted(wanted):
        return [known.index(label) for label in wanted]
    if len(known) == len(wanted) and all(NAMELESS.fullmatch(label) for label in labels):
        say(f"{name} has no names for its labels, which are taken as {', '.join(names)}")
        return None
    raise UserError(
        f"{name} knows the labels {', '.join(labels)} and the task {task.name} has {', '.join(names)}; give a model "
        f"that was fine-tuned on {task.name}, or choose --task classification for rows with the model's own labels"
    )
