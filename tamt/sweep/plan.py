"""The runs of a study: which there are, what they are called, and which need which."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tamt.masks.file import MASK_FILE
from tamt.methods import FULL, IMP, METHODS, STAGES, last_step, objective_of
from tamt.runtime.errors import UserError
from tamt.runtime.names import distinct
from tamt.search.search import HEAD_FILE
from tamt.sweep.study import Part, Study
from tamt.terms import needs_head

ASIDE = "aside"
"""Folder of a study for runs that cannot be used; nothing is deleted."""
Kind = Literal["search", "evaluate", "finetune"]


@dataclass(frozen=True)
class Run:
    """One run: a folder of the study.

    Attributes:
        kind: the command, and the folder that the run's folder is in.
        name: the run's folder; made of its settings.
        settings: what the command is called with, but for `output`.
        labels: the settings that tell it from others, for the table.
        needs: the search whose mask it takes.
        masks: of a search, the mask files that are asked for, relative to its folder.
        work: how much there is to do, in steps of the search or as 1; runs with the same `like` take time by it.
    """

    kind: Kind
    name: str
    settings: dict[str, Any]
    labels: dict[str, Any]
    needs: str | None = None
    masks: tuple[str, ...] = ()
    work: int = 1
    like: tuple[Any, ...] = ()

    @property
    def path(self) -> str:
        """The run's folder, relative to that of the study."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Ticket:
    """A subnetwork that the study is about, or the full model.

    Attributes:
        name: the part of the names of its runs that is its own.
        labels: the settings that tell it from others.
        search: the run that finds its mask, None for the full model.
        file: the mask, relative to the folder of that run.
        evaluation: the run that measures it, None where the search does.
    """

    name: str
    labels: dict[str, Any]
    search: str | None = None
    file: str | None = None
    evaluation: str | None = None


@dataclass
class Plan:
    """All runs of a study in the order in which they can be done, and its tickets."""

    runs: list[Run] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)


Add = Callable[[Run], Run]
"""Takes a run into the plan, and gives it back as it is there."""


def make_plan(study: Study) -> Plan:
    """The runs of all parts of a study, each once; searches, then evaluations, then fine-tunings.

    One search serves all masks that lie on its way: mask training those of its `save_at`, IMP those of the lower
    sparsities that are whole tenths (the paper's way, B.2).

    Raises:
        UserError: two parts want the same run with different settings.
    """
    names = model_names([model for part in study.parts for model in part.models])
    runs: dict[str, Run] = {}
    tickets: dict[str, Ticket] = {}

    def add(run: Run) -> Run:
        former = runs.get(run.path)
        if former is not None:
            run = _merged(study, former, run)
        runs[run.path] = run
        return run

    for part in study.parts:
        for model in part.models:
            found = [ticket for method in part.methods for ticket in _search(study, part, model, names, method, add)]
            if part.full_model:
                labels = {"model": names[model], "method": FULL, "sparsity": 0.0}
                found.append(Ticket(f"{FULL}_{names[model]}", labels))
            for ticket in found:
                ticket = _evaluate(study, part, model, ticket, add)
                tickets[ticket.name] = ticket
                _finetune(study, part, model, ticket, add)
    kinds = ("search", "evaluate", "finetune")
    return Plan(sorted(runs.values(), key=lambda run: kinds.index(run.kind)), list(tickets.values()))


def model_names(models: Iterable[str]) -> dict[str, str]:
    """A name for each model that can stand in the name of a folder: the last part of a path, or the hub's name.

    Where two models would have the same one, each gets the start of its path's sha256.
    """
    return distinct({model: _slug(Path(model).name if Path(model).is_absolute() else model) for model in models})


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip(".-") or "model"


def _search(study: Study, part: Part, model: str, names: dict[str, str], method: str, add: Add) -> list[Ticket]:
    """The searches of a method for a model, and their tickets."""
    options = {key: value for key, value in part.search[method].items() if key not in {"steps", "save_at"}}
    tickets = []
    for steps in part.search[method].get("steps", [None]):
        for variant in _variants(part, method):
            for seed in part.mask_seeds if METHODS[method].seeded else [None]:
                for sparsity in part.sparsities:
                    asked = _sparsities_of_imp(study, model, steps) if method == IMP else [sparsity]
                    searched = _host(sparsity, asked)
                    last = last_step(method, searched, steps)
                    save_at = [step for step in part.search[method].get("save_at", []) if step < last]
                    common = [method, names[model], *_variant_marks(variant), *_marks(steps=steps)]
                    own = {**variant, "steps": steps}
                    labels = {"model": names[model], "method": method, "sparsity": sparsity, **own, "mask_seed": seed}
                    final = MASK_FILE if sparsity == searched else f"masks/sparsity-{sparsity:g}.safetensors"
                    files = {None: final} | {step: f"masks/step-{step}.safetensors" for step in save_at}
                    settings = {**options, "method": method, "model": model, "sparsity": searched}
                    given = {
                        "corpus": part.corpus,
                        "dev_corpus": part.dev_corpus,
                        "steps": steps,
                        **variant,
                        "seed": seed,
                        "save_at": save_at,
                    }
                    search = add(
                        Run(
                            kind="search",
                            name="_".join([*common[:2], f"s{searched!r}", *common[2:], *_marks(seed=seed)]),
                            settings=settings | {key: value for key, value in given.items() if value not in (None, [])},
                            labels=labels | {"sparsity": searched},
                            masks=tuple(files.values()),
                            work=max(1, last),
                            like=("search", method, names[model]),
                        )
                    )
                    for step, file in files.items():
                        marks = _marks(mask=seed, step=step)
                        tickets.append(
                            Ticket(
                                name="_".join([*common[:2], f"s{sparsity!r}", *common[2:], *marks]),
                                labels=labels | {"step": step},
                                search=search.path,
                                file=file,
                            )
                        )
    return tickets


def _sparsities_of_imp(study: Study, model: str, steps: int | None) -> list[float]:
    """All sparsities that the parts of a study ask of IMP for a model and a schedule."""
    return [
        sparsity
        for part in study.parts
        if model in part.models and IMP in part.methods and steps in part.search[IMP].get("steps", [None])
        for sparsity in part.sparsities
    ]


def _host(sparsity: float, asked: Sequence[float]) -> float:
    """The sparsity of the search that gives the mask of `sparsity`: the highest one, if it passes that on its way."""
    on_the_way = {stage / STAGES for stage in range(1, STAGES)}
    return max(asked) if sparsity in on_the_way else sparsity


def _evaluate(study: Study, part: Part, model: str, ticket: Ticket, add: Add) -> Ticket:
    """The evaluation of a ticket that its search does not measure: of a mask along the way, and of the full model."""
    method = ticket.labels["method"]
    text = part.dev_corpus or part.corpus
    if not text or (ticket.search and ticket.labels.get("step") is None):
        return ticket
    trained = [name for name, found in METHODS.items() if found.trains_scores]
    # Measured as the search measures its last mask, the full model as the first method of mask training there is.
    like = next((name for name in (method, *trained) if name in part.methods), part.methods[0])
    options = part.search[like]
    settings: dict[str, Any] = {"model": model, "corpus": text}
    settings |= {key: options[key] for key in ("head", "max_length", "batch_size", "precision") if key in options}
    if "eval_blocks" in options:
        settings["blocks"] = options["eval_blocks"]
    if ticket.search:
        settings["mask"] = study.output / ticket.search / str(ticket.file)
        weights = objective_of(METHODS[method], ticket.labels.get("objective"))
        if METHODS[method].trains_scores and needs_head(weights):  # its head was trained with the mask
            settings["head"] = study.output / ticket.search / HEAD_FILE
    name = ticket.labels["model"]
    run = add(Run("evaluate", ticket.name, settings, ticket.labels, ticket.search, like=("evaluate", name)))
    return replace(ticket, evaluation=run.path)


def _finetune(study: Study, part: Part, model: str, ticket: Ticket, add: Add) -> None:
    """The fine-tunings of a ticket: tasks, numbers of training samples, learning rates and seeds."""
    for task, options in part.tasks.items():
        samples_and_rates = product(options.get("train_samples", [None]), options.get("lr", [None]))
        for (samples, rate), seed in product(samples_and_rates, part.finetune_seeds):
            own = {"train_samples": samples, "lr": rate, "seed": seed}
            settings = {**options, "model": model, **own}
            if ticket.search:
                settings["mask"] = study.output / ticket.search / str(ticket.file)
            name = "_".join([_slug(task), ticket.name, *_marks(n=samples, lr=rate, seed=seed)])
            labels = {**ticket.labels, "task": task, **own}
            like = ("finetune", task, ticket.labels["model"], samples)
            add(Run("finetune", name, settings, labels, ticket.search, like=like))


def _variants(part: Part, method: str) -> list[dict[str, Any]]:
    """The settings of each variant of a method: every value of each option that it has with every other's."""
    options = METHODS[method].variants
    return [dict(zip(options, values, strict=True)) for values in product(*(part.variants[key] for key in options))]


def _variant_marks(variant: Mapping[str, Any]) -> list[str]:
    """What names say of a variant: its values, of a mask file its folder and name, and nothing of a default."""

    def named(value: str) -> str:
        file = Path(value)
        return "-".join(file.with_suffix("").parts[-2:]) if file.is_absolute() else value

    return [_slug(named(value)) for value in variant.values() if value is not None]


def _marks(**settings: Any) -> list[str]:
    """What names say of settings: such as `steps150`, and nothing of what is None."""
    return [f"{name}{value}" for name, value in settings.items() if value is not None]


def _merged(study: Study, first: Run, second: Run) -> Run:
    """One run for the same run of two parts; the masks that they ask for along the way add up.

    Raises:
        UserError: their settings differ otherwise.
    """
    apart = {"save_at"}
    for key in sorted((first.settings.keys() | second.settings.keys()) - apart):
        one, other = first.settings.get(key), second.settings.get(key)
        if one != other:
            raise UserError(
                f"{study.file}: two parts ask for {first.path}, with {key} = {one} and {other}; "
                "give them the same, or make another study"
            )
    steps = sorted({*first.settings.get("save_at", []), *second.settings.get("save_at", [])})
    settings = {**first.settings, **({"save_at": steps} if steps else {})}
    return replace(first, settings=settings, masks=tuple(dict.fromkeys([*first.masks, *second.masks])))
