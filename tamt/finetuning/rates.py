"""The learning rate of a fine-tuning: the default, and the choice among several."""

import math
from collections.abc import Hashable, Mapping
from statistics import mean
from typing import TypeVar

Rate = TypeVar("Rate", float, float | None)
Key = TypeVar("Key", bound=Hashable)

WIDTH_OF_BASE = 768
RATE_OF_BASE = 2e-5
"""The paper's, for an unpruned base model (Table 1)."""
RISE_BY_SPARSITY = 10.0
"""A model with a share s of its weights pruned takes 1 + 10 s times the rate of the unpruned one.

Measured at width 384: of 1e-4 and 3e-4 the full model is better at 1e-4 on all of six tasks, and masks of 70, 80 and
90 % at 3e-4 on all that they learn, for masks of every method. At width 768 three masks of 70 % gain 0.22 to 0.61 on
TREC by 1.6e-4 instead of 2e-5.
"""


def default_rate(width: int, sparsity: float) -> float:
    """2e-5 · 768 / width · (1 + 10 · sparsity), to two digits: small and pruned models need higher rates.

    Args:
        width: of the hidden states.
        sparsity: share of zeros in the prunable matrices, 0 for the full model.
    """
    return float(f"{RATE_OF_BASE * WIDTH_OF_BASE / width * (1 + RISE_BY_SPARSITY * sparsity):.2g}")


def best_rate(scores: Mapping[Rate, float | None]) -> Rate:
    """The rate with the highest score; the first of equal ones. An undefined score is below all others."""

    def rank(rate: Rate) -> float:
        score = scores[rate]
        return -math.inf if score is None else score

    return max(scores, key=rank)


def best_over_runs(scores: Mapping[Rate, Mapping[Key, float | None]]) -> tuple[Rate, list[Key]]:
    """The rate with the highest mean score over the runs that every rate has, and those runs, none perhaps.

    A method is given one rate for all its masks. Were each mask given its own, methods whose masks have fewer
    fine-tunings would gain more by the choice. A rate with fewer undefined scores is better than any with more.

    Args:
        scores: by rate and run, that is the seeds of the mask and of the fine-tuning.
    """
    first, *others = scores.values()
    runs = [run for run in first if all(run in other for other in others)]

    def rank(rate: Rate) -> tuple[int, float]:
        defined = [score for run in runs if (score := scores[rate][run]) is not None]
        return len(defined), mean(defined) if defined else -math.inf

    return max(scores, key=rank), runs


def rates_in_words(rates: tuple[float | None, ...]) -> str:
    """`best of 2 rates: 0.0001, 0.0003`; of one rate that rate; None is the default."""
    listed = ", ".join("default" if rate is None else f"{rate:g}" for rate in rates)
    return listed if len(rates) == 1 else f"best of {len(rates)} rates: {listed}"
