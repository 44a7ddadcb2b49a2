"""What the run folders below a folder hold: subnetworks, their losses, their fine-tunings, and what cannot be used."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tamt.data.tasks import TASKS
from tamt.finetuning.rates import best_over_seeds, rates_in_words
from tamt.methods import METHODS, SCHEDULE_STEPS, is_one_shot, trains_scores
from tamt.report.variants import UNKNOWN, variants
from tamt.runtime.errors import UserError
from tamt.runtime.names import distinct
from tamt.runtime.untrusted import read_json, read_yaml
from tamt.training.run_folder import CONFIG, METRICS, RESULTS, RESUMED, version_of

ASIDE = "aside"
"""Where a sweep moves runs that it cannot use."""
EFFECTIVE_BATCH = "effective batch"
"""The blocks, or rows, of an optimizer step: `batch_size` × `accumulation` × `processes_of_step`."""
SEARCH_SETTINGS = [
    "corpus",
    EFFECTIVE_BATCH,
    "max_length",
    "recipe",
    "lr",
    "precision",
    "ranking",
    "kd_weight",
    "threshold_every",
    "prune_pooler",
    "head",
    "head_warmup_steps",
]
"""What searches of one method must share to be averaged, beside what the figures tell apart."""
ONE_SHOT_SETTINGS = ("prune_pooler",)
CALIBRATED_SETTINGS = ("corpus", "max_length", *ONE_SHOT_SETTINGS)
"""The same of one-shot methods, and of those among them that read text."""
FINETUNE_SETTINGS = [
    "epochs",
    EFFECTIVE_BATCH,
    "max_length",
    "recipe",
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
]
"""What fine-tunings on one task must share to be averaged, beside the list of learning rates."""


@dataclass(frozen=True)
class Ticket:
    """A subnetwork: a mask that a search found, or passed on its way.

    Attributes:
        variant: what tells the search from others by the method, see `tamt.report.variants`.
        seed: of the search; None for OMP, which has none.
        steps: optimizer steps of the learning rate's decay, the length of the search; 0 for the one-shot methods.
        step: after which the mask was taken.
        final: whether the search was for this mask, or passed it.
        mlm_loss: on the dev text, before fine-tuning; kd_loss likewise.
        seconds: of the search up to this mask; None where the search was resumed, as that time does not compare.
        mask: its file; None if it is not among the folders that were read.
        run: the folder of the search, relative to that of the study; empty if it is not among them.
        file: what fine-tunings call the mask whose search is not among the folders; None for the others.
    """

    model: str
    method: str
    variant: str | None
    sparsity: float
    seed: int | None
    steps: int
    step: int
    final: bool
    mlm_loss: float | None = None
    kd_loss: float | None = None
    seconds: float | None = None
    mask: Path | None = None
    run: str = ""
    file: str | None = None

    @property
    def identity(self) -> tuple:
        """What two tickets share if they are the same subnetwork."""
        return (self.model, self.method, self.variant, self.sparsity, self.seed, self.steps, self.step, self.file)


@dataclass(frozen=True)
class FineTuning:
    """One fine-tuning of a subnetwork, or of the full model, whose ticket is None. The score lies between −1 and 1.

    `lr` is the learning rate that was asked for, None for the default.
    """

    model: str
    ticket: Ticket | None
    task: str
    metric: str
    seed: int
    train_samples: int
    lr: float | None
    score: float
    seconds: float | None
    run: str


@dataclass(frozen=True)
class Curve:
    """The dev losses of one search along its way: step, seconds (None if it was resumed), and what was measured."""

    ticket: Ticket
    points: tuple[tuple[int, float | None, dict[str, float]], ...]


@dataclass(frozen=True)
class Skipped:
    """A run, or a file of one, that is not in the report, and why."""

    run: str
    why: str


@dataclass
class Study:
    """All that was read below `folder`. `version` is the tamt that wrote the runs, None where they do not say."""

    folder: Path
    version: str | None = None
    tickets: list[Ticket] = field(default_factory=list)
    fine_tunings: list[FineTuning] = field(default_factory=list)
    """At the learning rate that is the best one for their mask."""
    other_rates: list[FineTuning] = field(default_factory=list)
    """At the other rates."""
    rates: dict[tuple[str, str], tuple[float | None, ...]] = field(default_factory=dict)
    """By model and task the learning rates that every mask, and the full model, was fine-tuned at."""
    curves: list[Curve] = field(default_factory=list)
    full_losses: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    settings: list[tuple[str, str, str | None, str, Any]] = field(default_factory=list)
    """What the runs were done with: model, method or task, variant of the method, setting, value."""

    @property
    def models(self) -> list[str]:
        """The models, in the order of the alphabet."""
        return sorted({ticket.model for ticket in self.tickets} | {item.model for item in self.fine_tunings})

    def skip(self, run: str, why: str) -> None:
        """Leave a run out, and say so."""
        self.skipped.append(Skipped(run, why))


@dataclass(frozen=True)
class _Run:
    """A finished run as it lies on the disk. `model` and `task` are what readers see: short, and of one thing alone."""

    name: str
    path: Path
    version: str | None
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    model: str = ""
    task: str = ""
    variant: str | None = None


def read_study(folder: Path) -> Study:
    """Read every run folder below `folder`; what is damaged, unfinished or does not go with the rest is in `skipped`.

    Raises:
        UserError: there is no such folder, or no finished run in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder of a study, or one with run folders in it")
    study = Study(folder)
    runs = list(_finished_runs(study))
    if not runs:
        why = f" ({study.skipped[0].run}: {study.skipped[0].why})" if study.skipped else ""
        raise UserError(
            f"no finished run was found in {folder}{why}; give the folder of a study, or run tamt train and tamt "
            "finetune with an --output in it"
        )
    runs = _keep_most_common(
        study, runs, lambda run: None, lambda run: run.version, lambda v: f"was written by tamt {v or '(unknown)'}"
    )
    study.version = runs[0].version
    runs = _labelled(study, runs)
    searches = [r for r in runs if "method" in r.config]
    named = variants(run.config for run in searches)
    searches = [replace(run, variant=variant) for run, variant in zip(searches, named, strict=True)]
    searches = _alike(study, searches, "method")
    fine_tunings = _alike(study, [r for r in runs if "task" in r.config], "task")
    evaluations = [run for run in runs if "method" not in run.config and "task" not in run.config]
    _read_searches(study, searches)
    _read_evaluations(study, evaluations)
    _read_fine_tunings(study, fine_tunings, {run.name for run in runs if "method" in run.config})
    if not study.tickets and not study.fine_tunings:
        first = study.skipped[0]
        raise UserError(f"no run in {folder} can be used: {first.run} {first.why}; mend it or give another folder")
    return study


def _finished_runs(study: Study) -> Iterator[_Run]:
    paths = sorted({path.parent for name in (CONFIG, RESULTS) for path in study.folder.rglob(name)})
    for path in paths:
        name = str(path.relative_to(study.folder))
        if ASIDE in path.relative_to(study.folder).parts:
            study.skip(name, "was set aside by tamt sweep")
            continue
        if not (path / CONFIG).is_file():
            continue  # several runs summed up, which are read themselves
        try:
            config = read_yaml(path / CONFIG)
            if not all(isinstance(config.get(kind, ""), str) for kind in ("method", "task")):
                raise UserError("neither a method nor a task")
        except UserError:
            study.skip(name, f"has a damaged {CONFIG}")
            continue
        if not (path / RESULTS).is_file():
            study.skip(name, f"is not finished: it has no {RESULTS}")
            continue
        try:
            rows = read_json(path / RESULTS)["results"]
            if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
                raise ValueError
        except (UserError, ValueError, KeyError, TypeError):
            study.skip(name, f"has a damaged {RESULTS}")
            continue
        yield _Run(name, path, version_of(path), config, rows)


def _text(path: Path) -> str | None:
    """The text of a file, with replacement characters where it is none, None if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _keep_most_common(
    study: Study,
    runs: list[_Run],
    group: Callable[[_Run], Any],
    value: Callable[[_Run], Any],
    why: Callable[[Any], str],
) -> list[_Run]:
    """Those runs of each group that have the value which most of the group have; the others are skipped by name."""
    kept = []
    groups: dict[Any, list[_Run]] = {}
    for run in runs:
        groups.setdefault(group(run), []).append(run)
    for members in groups.values():
        common = Counter(map(value, members)).most_common(1)[0][0]
        for run in members:
            if value(run) == common:
                kept.append(run)
            else:
                study.skip(run.name, f"{why(value(run))}, most others {why(common)}")
    return kept


def _alike(study: Study, runs: list[_Run], kind: str) -> list[_Run]:
    """The runs of each model and method (variant), or model and task, that share their settings with most of them."""

    def keys(run: _Run) -> Iterable[str]:
        if kind == "task":
            return FINETUNE_SETTINGS
        method = run.config["method"]
        if not is_one_shot(method):
            return SEARCH_SETTINGS
        return CALIBRATED_SETTINGS if METHODS[method].needs_text else ONE_SHOT_SETTINGS

    def settings(run: _Run) -> tuple:
        return tuple(
            (key, _effective_batch(run.config) if key == EFFECTIVE_BATCH else _hashable(run.config.get(key)))
            for key in keys(run)
        )

    def said(values: tuple) -> str:
        return "has " + ", ".join(f"{key} {_plain(value)}" for key, value in values)

    groups: dict[tuple, list[_Run]] = {}
    for run in runs:
        key = (run.model, run.task if kind == "task" else run.config["method"], run.variant)
        groups.setdefault(key, []).append(run)
    kept = []
    for (model, name, variant), members in groups.items():
        counted = Counter(map(settings, members))
        common = counted.most_common(1)[0][0]
        for run in members:
            own = settings(run)
            if own == common:
                kept.append(run)
                continue
            mine = tuple(pair for pair, other in zip(own, common, strict=True) if pair != other)
            theirs = tuple(other for pair, other in zip(own, common, strict=True) if pair != other)
            study.skip(run.name, f"{said(mine)} where most runs of {name} {said(theirs)}; they are not averaged")
        study.settings += [(model, name, variant, key, _plain(value)) for key, value in common if value is not None]
    return kept


def _effective_batch(config: Mapping[str, Any]) -> Any:
    """The blocks or rows of an optimizer step; the factors where they are no numbers, None if no batch is known."""
    task = TASKS.get(str(config.get("task")))
    size = config.get("batch_size") or (task.batch_size if task else None)
    factors = [size, config.get("accumulation") or 1, config.get("processes_of_step") or 1]
    if all(isinstance(factor, int) for factor in factors):
        return math.prod(factors)
    return None if factors == [None, 1, 1] else _hashable(factors)


def _labelled(study: Study, runs: list[_Run]) -> list[_Run]:
    """The runs with labels for their models and tasks. Paths are told apart as they were written into the configs."""
    short_models = {_model(run): Path(_model(run)).name if _is_path(_model(run)) else _model(run) for run in runs}
    models = {full: name if _is_path(full) else full for full, name in distinct(short_models).items()}
    tasks = distinct({_task(run): _task(run, short=True) for run in runs if "task" in run.config})
    study.settings += [
        (label, "", None, "model", full) for full, label in models.items() if label != short_models[full]
    ]
    return [replace(run, model=models[_model(run)], task=tasks.get(_task(run), "")) for run in runs]


def _model(run: _Run) -> str:
    return str(run.config.get("model")).rstrip("/")


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~"))


def _task(run: _Run, short: bool = False) -> str:
    """The task of a run, for files of one's own with their name, or the folder's where the name is `train`."""
    task, train_file = str(run.config.get("task")), run.config.get("train_file")
    if not train_file:
        return task
    path = Path(str(train_file))
    name = path.parent.name if path.stem == "train" and path.parent.name else path.stem
    return f"{task} of {name if short else path}"


def _read_searches(study: Study, runs: list[_Run]) -> None:
    texts: dict[str, Counter] = {}
    found: list[tuple[Ticket, Any]] = []
    for run in runs:
        method, config = str(run.config["method"]), run.config
        lines, resumed = _metrics(study, run)
        text = _dev_text(config)
        try:
            steps = 0 if is_one_shot(method) else int(config.get("steps") or SCHEDULE_STEPS)
            tickets = [
                Ticket(
                    model=run.model,
                    method=method,
                    variant=run.variant,
                    sparsity=round(_number(row, "sparsity"), 3),
                    seed=int(row["seed"]) if _is_seeded(method) else None,
                    steps=steps,
                    step=int(row["step"]),
                    final=True,
                    mlm_loss=_optional(row, "mlm_loss"),
                    kd_loss=_optional(row, "kd_loss"),
                    seconds=None if resumed else _optional(row, "seconds"),
                    mask=_mask_of(run, row),
                    run=run.name,
                )
                for row in run.rows
            ]
        except (KeyError, TypeError, ValueError) as error:
            study.skip(run.name, f"has a row in {RESULTS} that is none of a search ({error})")
            continue
        last = tickets[-1]
        for file in sorted(run.path.glob("masks/step-*.safetensors")):
            number = file.stem.removeprefix("step-")
            if number.isdecimal() and int(number) != last.step:
                line = lines.get(int(number), {})
                tickets.append(
                    replace(
                        last,
                        step=int(number),
                        final=False,
                        mask=file,
                        mlm_loss=_optional(line, "dev_mlm_loss"),
                        kd_loss=_optional(line, "dev_kd_loss"),
                        seconds=None if resumed else _seconds_at(lines, int(number)),
                    )
                )
        points = tuple(
            (step, None if resumed else _seconds_at(lines, step), values)
            for step, line in sorted(lines.items())
            if (
                values := {
                    key: float(value)
                    for key, value in line.items()
                    if key in ("dev_mlm_loss", "dev_kd_loss", "changed") and isinstance(value, int | float)
                }
            )
        )
        if not is_one_shot(method) and points:
            study.curves.append(Curve(last, points))
        for ticket in tickets:
            found.append((ticket, text))
            texts.setdefault(ticket.model, Counter())[text] += ticket.kd_loss is not None
    known: dict[tuple, Ticket] = {}
    for ticket, text in found:
        common = texts[ticket.model].most_common(1)[0][0]
        if ticket.kd_loss is not None and text != common:
            study.skip(
                ticket.run,
                f"was measured on other dev text ({_plain(text)}) than most ({_plain(common)}): no loss shown",
            )
            ticket = replace(ticket, mlm_loss=None, kd_loss=None)
        if other := known.get(ticket.identity):
            if ticket.final:
                study.skip(ticket.run, f"found the same mask as {other.run}; only that is counted")
            continue
        known[ticket.identity] = ticket
        study.tickets.append(ticket)
    study.full_losses = {model: {} for model in texts}


def _dev_text(config: Mapping[str, Any]) -> tuple:
    """What dev losses were measured on, so that only those on the same text are compared."""
    dev, corpus = config.get("dev_corpus"), config.get("corpus")
    own = dev or corpus
    part = "" if dev or own in (["demo"], ["wikitext-103"]) or not own else "the last 5 % of"
    return (part, _hashable(own), config.get("max_length"), config.get("eval_blocks"))


def _metrics(study: Study, run: _Run) -> tuple[dict[int, dict[str, Any]], bool]:
    """The lines of metrics.jsonl by step, those of a step together; and whether the run was resumed."""
    lines: dict[int, dict[str, Any]] = {}
    resumed, damaged = False, 0
    for text in (_text(run.path / METRICS) or "").splitlines():
        try:
            line = json.loads(text)
            step, _ = int(line["step"]), float(line.get("seconds", 0))
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
            continue
        resumed |= RESUMED in line
        if "head_warmup" not in line:
            lines.setdefault(step, {}).update(line)
    if damaged:
        study.skip(f"{run.name}/{METRICS}", f"has {damaged} damaged lines, which are left out")
    if resumed:
        study.skip(run.name, "was interrupted and resumed, so its search time is not known; its masks are used")
    return lines, resumed


def _seconds_at(lines: Mapping[int, Mapping[str, Any]], step: int) -> float | None:
    """The seconds logged at the step, or at the first after it."""
    later = sorted(number for number, line in lines.items() if number >= step and "seconds" in line)
    return float(lines[later[0]]["seconds"]) if later else None


def _mask_of(run: _Run, row: Mapping[str, Any]) -> Path | None:
    """The mask of a row, in its run's folder wherever that was moved to."""
    parts = Path(str(row.get("mask"))).parts
    path = run.path.joinpath(*parts[-2:] if parts[-2:-1] == ("masks",) else parts[-1:])
    return path if path.is_file() else None


def _read_evaluations(study: Study, runs: list[_Run]) -> None:
    """Put the losses of evaluated masks, and of the full model, where they belong."""
    for run in runs:
        row = run.rows[0]
        losses = {key: value for key in ("mlm_loss", "kd_loss") if (value := _optional(row, key)) is not None}
        if not losses:
            study.skip(run.name, "is no run of tamt train, finetune or evaluate that this tamt knows")
            continue
        if not row.get("mask"):
            study.full_losses.setdefault(run.model, {}).update(losses)
            continue
        ticket = _ticket_of(study, run, row, row.get("mask_seed"), row.get("mask_step"))
        if ticket is None:
            study.skip(run.name, "evaluates a mask whose search is not in the folder")
        elif ticket.kd_loss is None:
            study.tickets[study.tickets.index(ticket)] = replace(
                ticket, mlm_loss=losses.get("mlm_loss"), kd_loss=losses.get("kd_loss")
            )


def _read_fine_tunings(study: Study, runs: list[_Run], searches: set[str]) -> None:
    known: dict[tuple, str] = {}
    lonely: dict[tuple, Ticket] = {}
    for run in runs:
        row = run.rows[0]
        try:
            if row.get("score") is None:
                study.skip(run.name, "has no score: its metric is undefined")
                continue
            mask = row.get("mask") or run.config.get("mask")
            ticket = None
            if mask:
                row = {**row, "mask": mask}
                ticket = _ticket_of(study, run, row, row.get("mask_seed"), row.get("mask_step"))
                if ticket is None:
                    folder = _mask_key(str(mask))[0]
                    if any(Path(name).name == folder for name in searches):
                        study.skip(
                            run.name,
                            f"fine-tunes a mask of {folder}, which is left out, of another model or holds another mask",
                        )
                        continue
                    ticket = _lonely(run, row)
                    ticket = lonely.setdefault(ticket.identity, ticket)
            fine_tuning = FineTuning(
                model=run.model,
                ticket=ticket,
                task=run.task,
                metric=str(row.get("metric", "score")),
                seed=int(row["seed"]),
                train_samples=int(row["train_samples"]),
                lr=_optional(run.config, "lr"),
                score=_number(row, "score"),
                seconds=_optional(row, "seconds"),
                run=run.name,
            )
        except (KeyError, TypeError, ValueError) as error:
            study.skip(run.name, f"has a row in {RESULTS} that is none of a fine-tuning ({error})")
            continue
        key = (*_rated_together(fine_tuning), fine_tuning.lr, fine_tuning.seed)
        if key in known:
            study.skip(run.name, f"is the same fine-tuning as {known[key]}; only that is counted")
            continue
        known[key] = run.name
        study.fine_tunings.append(fine_tuning)
    study.tickets += lonely.values()
    _choose_rates(study)


def _rated_together(item: FineTuning) -> tuple:
    """What fine-tunings share between which the best learning rate is chosen: model, task, mask, training samples."""
    return (item.model, item.task, item.ticket.identity if item.ticket else (), item.train_samples)


def _choose_rates(study: Study) -> None:
    """Keep the fine-tunings at the best learning rate of each mask, chosen from the same list for all of a task.

    The list is the one that most masks of a model and task were given. A mask that lacks one of its rates is left out,
    as are runs at rates outside it, and seeds that were not run at every rate.
    """
    groups: dict[tuple, dict[float | None, dict[int, FineTuning]]] = {}
    for item in study.fine_tunings:
        groups.setdefault(_rated_together(item), {}).setdefault(item.lr, {})[item.seed] = item
    _find_rates(study, groups)
    study.fine_tunings = []
    for (model, task, *_), by_rate in groups.items():
        rates = study.rates[model, task]
        complete = all(rate in by_rate for rate in rates)
        for rate, by_seed in by_rate.items():
            if not complete or rate not in rates:
                why = f"has lr {rates_in_words((rate,))} where most runs of {task} have {rates_in_words(rates)}"
                for item in by_seed.values():
                    study.skip(item.run, f"{why}; they are not compared")
        if complete:
            _keep_best_rate(study, {rate: by_rate[rate] for rate in rates})


def _find_rates(study: Study, groups: Mapping[tuple, Mapping[float | None, Any]]) -> None:
    """Find the list of rates that most masks of each model and task were given."""
    lists: dict[tuple[str, str], Counter] = {}
    for (model, task, *_), by_rate in groups.items():
        lists.setdefault((model, task), Counter())[frozenset(by_rate)] += 1
    for place, counted in lists.items():
        rates = sorted(counted.most_common(1)[0][0], key=lambda rate: (rate is not None, rate))
        study.rates[place] = tuple(rates)
        if rates != [None]:
            study.settings.append((*place, None, "lr", rates_in_words(study.rates[place])))


def _keep_best_rate(study: Study, by_rate: Mapping[float | None, Mapping[int, FineTuning]]) -> None:
    best, seeds = best_over_seeds({rate: {seed: i.score for seed, i in own.items()} for rate, own in by_rate.items()})
    for rate, by_seed in by_rate.items():
        for seed, item in by_seed.items():
            if seed not in seeds:
                study.skip(item.run, f"has seed {seed}, which was not run at every rate; they are not compared")
            else:
                (study.fine_tunings if rate == best else study.other_rates).append(item)


def _lonely(run: _Run, row: Mapping[str, Any]) -> Ticket:
    """The ticket of a mask whose search is not among the folders: only what the fine-tuning says is known."""
    method = str(row["method"])
    return Ticket(
        model=run.model,
        method=method,
        variant=UNKNOWN if trains_scores(method) else None,
        sparsity=round(_number(row, "sparsity"), 3),
        seed=row.get("mask_seed") if _is_seeded(method) else None,
        steps=0,
        step=int(row.get("mask_step") or 0),
        final=True,
        file=str(row["mask"]),
    )


def _ticket_of(study: Study, run: _Run, row: Mapping[str, Any], seed: int | None, step: int | None) -> Ticket | None:
    """The ticket with the mask that a row names, which may have been moved with the study; None if there is none."""
    key = _mask_key(str(row["mask"]))
    candidates = [
        ticket
        for ticket in study.tickets
        if ticket.mask is not None
        and _mask_key(str(ticket.mask)) == key
        and ticket.model == run.model
        and ticket.method == row.get("method")
        and abs(ticket.sparsity - float(row.get("sparsity", -1))) < 0.002
        and (seed is None or ticket.seed in (None, seed))
        and (step is None or ticket.step == step)
    ]
    if len(candidates) > 1:  # folders of one name in several places
        candidates = [t for t in candidates if t.mask and t.mask.resolve() == Path(str(row["mask"])).resolve()]
    return candidates[0] if candidates else None


def _mask_key(mask: str) -> tuple[str, str]:
    """The name of the search's folder and the mask's place in it."""
    parts = Path(mask).parts
    inside = 2 if parts[-2:-1] == ("masks",) else 1
    return (parts[-inside - 1] if len(parts) > inside else "", "/".join(parts[-inside:]))


def _is_seeded(method: str) -> bool:
    return method not in METHODS or METHODS[method].seeded


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _optional(row: Mapping[str, Any], key: str) -> float | None:
    return None if row.get(key) is None else _number(row, key)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_plain(item) for item in value if item not in (None, ""))
    return str(value)
