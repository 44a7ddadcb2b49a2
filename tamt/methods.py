"""The methods that find a mask, each described once: how it searches, what it needs, how a report shows it.

Nothing here imports torch, so that help, studies and reports can read it at once. A new method is an entry here and a
function that takes a `tamt.search.search.Search`; no other file lists the methods.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, Literal

from tamt.runtime.choices import Names
from tamt.runtime.errors import UserError, check_choice
from tamt.terms import needs_head, parse_objective

SCHEDULE_STEPS = 27_920
"""Steps of the paper's schedule: two epochs of WikiText-103 in batches of 16 blocks of 512 tokens (paper B.2)."""
TAMT_STEPS = {20: 3_000, 30: 6_000, 40: 8_000, 50: 11_000, 60: 14_000, 70: 17_000, 80: 20_000, 90: 22_000}
IMP_STEPS = {20: 2_790, 30: 5_580, 40: 8_380, 50: 11_170, 60: 13_960, 70: 16_750, 80: 19_540, 90: 22_340}
STAGES = 10
"""Prunings in a whole schedule of IMP; each takes another tenth of the weights, the first one at step 0 (paper B.2)."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: the value of `--method`.
        label: the name in figures and tables.
        colours: on a light page and on a dark one.
        mark: matplotlib's marker.
        search: module and name of the function that runs the search, as `module:function`.
        trains: what the search trains: the scores of the masks, the weights, or nothing (a one-shot method).
        variants: the options that make other searches of the method, such as `scores`; other methods do not have them.
        objective: the weight of each term of the loss that is minimised, see `tamt.terms`; empty where `--objective`
            gives it.
        needs_text: whether the search reads a training text.
        seeded: whether the mask depends on the seed.
        random: whether the mask is drawn at random; the pooler's mask then is too.
        structures: the kinds of groups that it can prune with `--structure`: any, none, or layers alone.
        lr: the paper's peak learning rate (Table 1).
        paper_steps: the step of the paper's mask by sparsity in percent (Table 2).
        paper_seconds: the paper's search time by model: 22.34 K steps of IMP, 22 K of TAMT, on one V100 (Table 3).
    """

    name: str
    label: str
    colours: tuple[str, str]
    mark: str
    search: str
    trains: Literal["scores", "weights", "nothing"] = "nothing"
    variants: tuple[str, ...] = ()
    objective: Mapping[str, float] = field(default_factory=dict)
    needs_text: bool = False
    seeded: bool = True
    random: bool = False
    structures: Literal["any", "none", "layers"] = "any"
    lr: float | None = None
    paper_steps: Mapping[int, int] = field(default_factory=dict)
    paper_seconds: Mapping[str, int] = field(default_factory=dict)

    @property
    def trains_scores(self) -> bool:
        """Whether this is mask training."""
        return self.trains == "scores"

    @property
    def one_shot(self) -> bool:
        """Whether the mask is found without training."""
        return self.trains == "nothing"

    @property
    def needs_head(self) -> bool:
        """Whether the search trains the MLM head, which then must not be a random one."""
        return needs_head(self.objective)

    def can_prune(self, kinds: Sequence[str]) -> bool:
        """Whether it can prune these kinds of groups together."""
        return self.structures == "any" or (self.structures == "layers" and list(kinds) == ["layers"])

    def function(self) -> Callable[[Any], list[dict]]:
        """The function that runs the search: takes a `Search`, returns the rows of the results."""
        module, _, name = self.search.partition(":")
        function: Callable[[Any], list[dict]] = getattr(import_module(module), name)
        return function


_MASK_TRAINING: dict[str, Any] = {
    "search": "tamt.search.mask_training:train_masks",
    "trains": "scores",
    "needs_text": True,
    "paper_steps": TAMT_STEPS,
}
_STARTS = ("initial", "scores")
METHODS = {
    method.name: method
    for method in (
        Method(
            "tamt-mlm",
            "TAMT-MLM",
            ("#0072b2", "#56a9e0"),
            "s",
            **_MASK_TRAINING,
            variants=_STARTS,
            objective={"mlm": 1.0},
            lr=5e-5,
            paper_seconds={"bert-base": 14_098, "roberta-base": 15_435},
        ),
        Method(
            "tamt-kd",
            "TAMT-KD",
            ("#d55e00", "#ff8a3d"),
            "o",
            **_MASK_TRAINING,
            variants=_STARTS,
            objective={"kd": 1.0},
            lr=2e-5,
            paper_seconds={"bert-base": 17_206, "roberta-base": 17_515},
        ),
        Method(
            "tamt-mlm+kd",
            "TAMT-MLM+KD",
            ("#a8478a", "#dd8fc4"),
            "D",
            **_MASK_TRAINING,
            variants=_STARTS,
            objective={"mlm": 1.0, "kd": 1.0},
            lr=5e-5,
        ),
        Method(
            "tamt",
            "TAMT",
            ("#11768a", "#56c5d8"),
            "h",
            **_MASK_TRAINING,
            variants=("objective", *_STARTS),
            lr=5e-5,
        ),
        Method(
            "imp",
            "IMP",
            ("#008a66", "#2fc39b"),
            "^",
            "tamt.search.imp:iterative_pruning",
            trains="weights",
            objective={"mlm": 1.0},
            needs_text=True,
            structures="none",
            lr=5e-5,
            paper_steps=IMP_STEPS,
            paper_seconds={"bert-base": 14_786, "roberta-base": 16_389},
        ),
        Method("omp", "OMP", ("#b98000", "#f0b93a"), "v", "tamt.search.oneshot:magnitude", seeded=False),
        Method(
            "wanda",
            "Wanda",
            ("#6a7700", "#b3c23a"),
            "p",
            "tamt.search.wanda:wanda",
            variants=("scope",),
            needs_text=True,
            structures="none",
        ),
        Method(
            "drop",
            "dropped layers",
            ("#9c5221", "#d9935f"),
            "d",
            "tamt.search.oneshot:drop_layers",
            variants=("drop",),
            seeded=False,
            structures="layers",
        ),
        Method("rand", "random", ("#7b828a", "#a3abb4"), "X", "tamt.search.oneshot:at_random", random=True),
    )
}
"""The methods by name, in the order in which they are shown."""

MethodName = Annotated[str, Names(METHODS)]
"""The type of an option that is the name of a method; see `tamt.options.base.choices_of`."""
OMP, RANDOM, IMP = "omp", "rand", "imp"
"""The baselines that the paper's figures are about."""
PUBLISHED = "published"
"""What stands for the method of a mask that was not found here."""
FULL = "full"
"""What stands for the method of the full model."""


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: there is none; the message lists them.
    """
    check_choice("method", name, METHODS)
    return METHODS[name]


def variant_options() -> list[str]:
    """The options that make other searches of some method."""
    return list(dict.fromkeys(option for method in METHODS.values() for option in method.variants))


def methods_without_head() -> list[str]:
    """The methods that do without an MLM head whatever their options are."""
    fixed = (method for method in METHODS.values() if method.objective or method.one_shot)
    return [method.name for method in fixed if not method.needs_head]


def trains_scores(name: str) -> bool:
    """Whether a method, perhaps one of another version of tamt, is mask training."""
    return name in METHODS and METHODS[name].trains_scores


def is_one_shot(name: str) -> bool:
    """Whether a method, perhaps one of another version of tamt, is one-shot."""
    return name in METHODS and METHODS[name].one_shot


def paper_steps(method: Method, sparsity: float) -> int | None:
    """The step of the paper's mask of a method at the nearest sparsity of its Table 2; None for a one-shot method."""
    percent = min(method.paper_steps, key=lambda percent: abs(percent - 100 * sparsity), default=None)
    return None if percent is None else method.paper_steps[percent]


def steps_to(sparsity: float, schedule_steps: int) -> int:
    """The step of IMP's pruning that reaches `sparsity`: 16.75 K of 27.92 K for 70 % (paper, Table 2)."""
    stage = next(stage for stage in range(1, STAGES + 1) if stage / STAGES >= sparsity)
    return (stage - 1) * (schedule_steps // STAGES)


def last_step(name: str, sparsity: float, steps: int | None) -> int:
    """The optimizer step after which a search has its mask, for `steps` of schedule, the paper's if None.

    A one-shot method takes no step.
    """
    method = find_method(name)
    if method.trains == "weights":
        return steps_to(sparsity, steps or SCHEDULE_STEPS)
    return 0 if method.one_shot else steps or paper_steps(method, sparsity) or SCHEDULE_STEPS


def objective_of(method: Method, objective: str | None) -> dict[str, float]:
    """The weight of each term of the loss: those of the method, or of `--objective` for a method without its own.

    Raises:
        UserError: the method has no objective of its own and none is given; see also `parse_objective`.
    """
    if "objective" in method.variants:
        if objective is None:
            raise UserError(f"{method.name} needs an objective; give one such as --objective kd:1,attention:1")
        return parse_objective(objective)
    return dict(method.objective)
