"""The runs of a study: what they are, their names, and which run needs which."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from tamt.masks.file import MASK_FILE
from tamt.methods import FULL, IMP, METHODS, STAGES, last_step, objective_of
from tamt.runtime.errors import UserError
from tamt.runtime.names import distinct, slug
from tamt.search.search import HEAD_FILE
from tamt.sweep.study import Amount, Part, Study
from tamt.terms import needs_head

ASIDE = "aside"
"""Folder of a study for runs that cannot be used; nothing is deleted."""
Kind = Literal["search", "evaluate", "finetune", "bench"]


@dataclass(frozen=True)
class Run:
    """One run of a study, in a folder of its own.

    Attributes:
        kind: the command, which is also the folder that the run's folder is in.
        name: the run's folder, made of its settings.
        settings: the options of the command, except `output`.
        labels: the settings that distinguish it, for the table of results.
        needs: path of the search whose mask it takes; None if it needs none.
        masks: the mask files that are requested of a search, relative to its folder.
        work: amount of work: optimizer steps of a search, else 1.
        like: runs with the same value take a time proportional to `work`.
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
class Subnetwork:
    """A subnetwork that the study measures and fine-tunes, or the full model.

    Attributes:
        name: the part of its runs' names that stands for it.
        labels: the settings that distinguish it.
        search: path of the run that finds its mask; None for the full model.
        file: the mask file, relative to the folder of that run.
        evaluation: path of the run that measures its losses; None if the search does.
    """

    name: str
    labels: dict[str, Any]
    search: str | None = None
    file: str | None = None
    evaluation: str | None = None


@dataclass
class StudyPlan:
    """All runs of a study, each after the run that it needs, and the subnetworks."""

    runs: list[Run] = field(default_factory=list)
    subnetworks: list[Subnetwork] = field(default_factory=list)


@dataclass(frozen=True)
class GridPoint:
    """One combination of the values that a part of a study lists for a method.

    Attributes:
        model: hub name or folder.
        method: name of the method.
        steps: length of the search, None for the default.
        variant: value of each option in `Method.variants`, None for the default.
        seed: seed of the search; None if the mask does not depend on it.
        amount: how much is pruned.
    """

    model: str
    method: str
    steps: int | None
    variant: dict[str, Any]
    seed: int | None
    amount: Amount


def make_plan(study: Study) -> StudyPlan:
    """The runs of all parts of a study, each once: searches, then evaluations, fine-tunings and measurements of time.

    One search gives all masks that it passes: mask training those of its `save_at`, IMP those of the lower sparsities
    that are multiples of 10 % (as in the paper, B.2).

    Raises:
        UserError: two parts request the same run with different settings.
    """
    return _Planner(study).plan()


def grid(part: Part, model: str, method: str) -> Iterator[GridPoint]:
    """The searches of a method for a model: every length, variant, seed and amount with every other."""
    found = METHODS[method]
    all_steps = part.search[method].get("steps", [None])
    values = product(*(part.variants[option] for option in found.variants))
    variants = [dict(zip(found.variants, chosen, strict=True)) for chosen in values]
    seeds = part.mask_seeds if found.seeded else [None]
    for steps, variant, seed, amount in product(all_steps, variants, seeds, part.amounts):
        yield GridPoint(model, method, steps, variant, seed, amount)


def _imp_search(part: Part) -> tuple:
    """What a part says of its IMP searches, their lengths left out."""
    options = {key: value for key, value in part.search[IMP].items() if key != "steps"}
    return (options, part.corpus, part.dev_corpus)


class _Planner:
    """Collects the runs of a study. A run that several parts request is in `runs` once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.model_names = model_names([model for part in study.parts for model in part.models])
        self.runs: dict[str, Run] = {}

    def plan(self) -> StudyPlan:
        """The plan of the whole study."""
        subnetworks: dict[str, Subnetwork] = {}
        for part in self.study.parts:
            for model in part.models:
                points = (point for method in part.methods for point in grid(part, model, method))
                found = [subnetwork for point in points for subnetwork in self.search(part, point)]
                if part.full_model:
                    name = self.model_names[model]
                    found.append(Subnetwork(f"{FULL}_{name}", {"model": name, "method": FULL, "sparsity": 0.0}))
                for subnetwork in found:
                    subnetwork = self.evaluate(part, model, subnetwork)
                    subnetworks[subnetwork.name] = subnetwork
                    self.finetune(part, model, subnetwork)
                    self.bench(part, model, subnetwork)
        kinds = get_args(Kind)
        return StudyPlan(sorted(self.runs.values(), key=lambda run: kinds.index(run.kind)), list(subnetworks.values()))

    def add(self, run: Run) -> Run:
        """Add a run; returns it merged with the same run of another part."""
        if former := self.runs.get(run.path):
            run = _merged(self.study, former, run)
        self.runs[run.path] = run
        return run

    def search(self, part: Part, point: GridPoint) -> list[Subnetwork]:
        """Add the search of a point. Returns its subnetworks: at the end, and at the steps of `save_at`."""
        method, name, steps = point.method, self.model_names[point.model], point.steps
        options = part.search[method]
        searched = self._amount_of_search(part, point)
        last = last_step(method, searched.sparsity, steps)
        save_at = [step for step in options.get("save_at", []) if step < last]
        final = MASK_FILE if point.amount == searched else f"masks/sparsity-{point.amount.sparsity:g}.safetensors"
        files = {None: final} | {step: f"masks/step-{step}.safetensors" for step in save_at}
        own = {"model": name, "method": method}
        labels = {**own, **point.amount.options, **point.variant, "steps": steps, "mask_seed": point.seed}
        given = {
            "corpus": part.corpus,
            "dev_corpus": part.dev_corpus,
            "steps": steps,
            **point.variant,
            "seed": point.seed,
            "save_at": save_at,
        }
        settings = {key: value for key, value in options.items() if key not in {"steps", "save_at"}}
        settings |= {"method": method, "model": point.model, **searched.options}
        settings |= {key: value for key, value in given.items() if value not in (None, [])}
        search = self.add(
            Run(
                kind="search",
                name=self._name(part, point, searched, seed=point.seed),
                settings=settings,
                labels=labels | searched.options,
                masks=tuple(files.values()),
                work=max(1, last),
                like=("search", method, name),
            )
        )
        return [
            Subnetwork(
                self._name(part, point, point.amount, mask=point.seed, step=step),
                labels | {"step": step},
                search.path,
                file,
            )
            for step, file in files.items()
        ]

    def _amount_of_search(self, part: Part, point: GridPoint) -> Amount:
        """What the search that gives a point's mask prunes: for IMP the highest sparsity, if it passes the point's.

        Parts that search otherwise, by other options or on other text, have searches of their own.
        """
        passed = {Amount(stage / STAGES) for stage in range(1, STAGES)}
        if point.method != IMP or point.amount not in passed:
            return point.amount
        return max(
            (
                amount
                for other in self.study.parts
                if point.model in other.models
                and IMP in other.methods
                and point.steps in other.search[IMP].get("steps", [None])
                and point.seed in other.mask_seeds
                and _imp_search(other) == _imp_search(part)
                for amount in other.amounts
                if amount == Amount(amount.sparsity)
            ),
            key=lambda amount: amount.sparsity,
        )

    def _name(self, part: Part, point: GridPoint, amount: Amount, **marks: int | None) -> str:
        """The name of a search or a subnetwork."""
        pruned = amount.pattern or amount.structure or f"s{amount.sparsity!r}"
        start = [point.method, self.model_names[point.model], slug(pruned)]
        return "_".join([*start, *_variant_marks(part, point.variant), *_marks(steps=point.steps, **marks)])

    def evaluate(self, part: Part, model: str, subnetwork: Subnetwork) -> Subnetwork:
        """Add the evaluation of a subnetwork that its search does not measure, as of masks on the way."""
        text = part.dev_corpus or part.corpus
        if not text or (subnetwork.search and subnetwork.labels.get("step") is None):
            return subnetwork
        method = subnetwork.labels["method"]
        trained = [name for name, found in METHODS.items() if found.trains_scores]
        # Measured as the search measures its last mask; the full model as the first method of mask training does.
        like = next((name for name in (method, *trained) if name in part.methods), part.methods[0])
        options = part.search[like]
        settings: dict[str, Any] = {"model": model, "corpus": text}
        settings |= {key: options[key] for key in ("head", "max_length", "batch_size", "precision") if key in options}
        if "eval_blocks" in options:
            settings["blocks"] = options["eval_blocks"]
        if subnetwork.search:
            settings["mask"] = self._mask(subnetwork)
            weights = objective_of(METHODS[method], subnetwork.labels.get("objective"))
            if METHODS[method].trains_scores and needs_head(weights):  # its head was trained with the mask
                settings["head"] = self.study.output / subnetwork.search / HEAD_FILE
        like_these = ("evaluate", subnetwork.labels["model"])
        run = Run("evaluate", subnetwork.name, settings, subnetwork.labels, needs=subnetwork.search, like=like_these)
        return replace(subnetwork, evaluation=self.add(run).path)

    def finetune(self, part: Part, model: str, subnetwork: Subnetwork) -> None:
        """Add the fine-tunings of a subnetwork: tasks, numbers of training samples, learning rates and seeds."""
        task_names = distinct({task: slug(task) for task in part.tasks})
        for task, options in part.tasks.items():
            all_samples, rates = options.get("train_samples", [None]), options.get("lr", [None])
            for samples, rate, seed in product(all_samples, rates, part.finetune_seeds):
                own = {"train_samples": samples, "lr": rate, "seed": seed}
                settings = {**options, "model": model, **own}
                if subnetwork.search:
                    settings["mask"] = self._mask(subnetwork)
                name = "_".join([task_names[task], subnetwork.name, *_marks(n=samples, lr=rate, seed=seed)])
                labels = {**subnetwork.labels, "task": task, **own}
                like = ("finetune", task, subnetwork.labels["model"], samples)
                self.add(Run("finetune", name, settings, labels, needs=subnetwork.search, like=like))

    def bench(self, part: Part, model: str, subnetwork: Subnetwork) -> None:
        """Add the measurement of a subnetwork's time and size, if the part asks for it."""
        if part.bench is None:
            return
        settings = {**part.bench, "model": model}
        if subnetwork.search:
            settings["mask"] = self._mask(subnetwork)
        like = ("bench", subnetwork.labels["model"])
        self.add(Run("bench", subnetwork.name, settings, subnetwork.labels, needs=subnetwork.search, like=like))

    def _mask(self, subnetwork: Subnetwork) -> Path:
        return self.study.output / str(subnetwork.search) / str(subnetwork.file)


def model_names(models: Iterable[str]) -> dict[str, str]:
    """A name for each model that a folder's name can contain: the last part of a path, or the hub's name.

    Where two models would have the same name, each gets the start of its path's sha256.
    """
    return distinct({model: slug(Path(model).name if Path(model).is_absolute() else model) for model in models})


def _variant_marks(part: Part, variant: Mapping[str, Any]) -> list[str]:
    """How names show a variant: its values without the defaults, a mask file by its folder and name."""

    def named(value: str) -> str:
        file = Path(value)
        return slug("-".join(file.with_suffix("").parts[-2:]) if file.is_absolute() else value)

    given = {option: value for option, value in variant.items() if value is not None}
    return [distinct({other: named(other) for other in part.variants[key]})[value] for key, value in given.items()]


def _marks(**settings: Any) -> list[str]:
    """How names show settings, such as `steps150`; None is left out."""
    return [f"{name}{value}" for name, value in settings.items() if value is not None]


def _merged(study: Study, first: Run, second: Run) -> Run:
    """One run for the same run of two parts, with the masks on the way that either requests.

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
