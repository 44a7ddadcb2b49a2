"""The statistics of a report: mean and spread, paired differences with intervals, rank correlation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tamt.finetuning.metrics import ranks, spearman

FEWEST_PAIRS = 5
"""Fewest pairs for a bootstrap interval: three values have only ten different resamples."""
FEWEST_MASKS = 5
"""Fewest masks for a rank correlation: with four, even a perfect one has a chance of 1 in 12."""
DRAWS = 10_000
SEED = 0


@dataclass(frozen=True)
class Summary:
    """The mean of some runs. The standard deviation is that of a sample, with n − 1; None for one run. `digits` is how
    many of them readers see behind the point; None where the size of the mean decides.
    """

    mean: float
    std: float | None
    runs: int
    digits: int | None = None


def summarise(values: Sequence[float], digits: int | None = None) -> Summary:
    """Mean, standard deviation and number of one or more values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), std, len(values), digits)


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and its 95 % interval; None with fewer than `FEWEST_PAIRS` pairs."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int
    masks: int


def paired_difference(differences: Sequence[tuple[int | None, float]]) -> Difference:
    """The mean difference of pairs of runs with a percentile bootstrap interval.

    Runs on one mask are not independent. So masks are drawn with replacement first, then pairs of each drawn mask (the
    two-stage bootstrap of Davison & Hinkley 1997, 3.8). With one mask the interval holds for fine-tunings of that mask
    only.

    Args:
        differences: the seed of the mask and the difference of the scores, for one pair or more.
    """
    groups: dict[int | None, list[float]] = {}
    for seed, value in differences:
        groups.setdefault(seed, []).append(value)
    mean = float(np.mean([value for _, value in differences]))
    if len(differences) < FEWEST_PAIRS:
        return Difference(mean, None, len(differences), len(groups))
    generator = np.random.default_rng(SEED)
    sizes = np.array([len(values) for values in groups.values()])
    table = np.zeros((len(groups), sizes.max()))
    for row, values in zip(table, groups.values(), strict=True):
        row[: len(values)] = values
    sums, counts = np.zeros(DRAWS), np.zeros(DRAWS)
    for _ in groups:
        mask = generator.integers(len(groups), size=DRAWS)
        places = (generator.random((DRAWS, table.shape[1])) * sizes[mask, None]).astype(int)
        drawn = np.arange(table.shape[1]) < sizes[mask, None]
        sums += (table[mask[:, None], places] * drawn).sum(axis=1)
        counts += sizes[mask]
    low, high = np.quantile(sums / counts, [0.025, 0.975])
    return Difference(mean, (float(low), float(high)), len(differences), len(groups))


@dataclass(frozen=True)
class WonBack:
    """The share of a loss that was won back, and its 95 % intervals: for these tasks, and for others like them.

    The first is None if a task has one run, which says nothing of the spread; the second, if there is one task.
    """

    share: float
    these_tasks: tuple[float, float] | None
    such_tasks: tuple[float, float] | None


def share_won_back(tasks: Sequence[Sequence[tuple[float, float]]]) -> WonBack | None:
    """The mean over tasks of what was won, over that of what was lost, with percentile bootstrap intervals.

    For these tasks, runs of each task are drawn with replacement; for tasks like them, tasks are drawn first, as masks
    are in `paired_difference`.

    Args:
        tasks: for each task, what was won and what was lost in each of its runs, one run or more.

    Returns:
        None if nothing was lost on the mean.
    """
    won, lost = np.mean([np.mean(runs, axis=0) for runs in tasks], axis=0)
    if lost <= 0:
        return None
    generator = np.random.default_rng(SEED)
    each = np.broadcast_to(np.arange(len(tasks)), (DRAWS, len(tasks)))
    drawn = generator.integers(len(tasks), size=each.shape)
    these = _won_back_interval(tasks, each, generator) if min(map(len, tasks)) > 1 else None
    such = _won_back_interval(tasks, drawn, generator) if len(tasks) > 1 else None
    return WonBack(float(won / lost), these, such)


def _won_back_interval(
    tasks: Sequence[Sequence[tuple[float, float]]], chosen: np.ndarray, generator: np.random.Generator
) -> tuple[float, float]:
    """The interval of the share over draws [draws, tasks], each of whose tasks has its runs drawn anew."""
    totals = np.zeros((len(chosen), 2))
    for column in chosen.T:
        for index, runs in enumerate(tasks):
            here = np.flatnonzero(column == index)
            totals[here] += np.array(runs)[generator.integers(len(runs), size=(len(here), len(runs)))].mean(axis=1)
    won, lost = totals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(lost > 0, won / lost, np.copysign(np.inf, won))
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return float(low), float(high)


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ, its 95 % interval and its p value; None with fewer than `FEWEST_MASKS` masks, or if one side is
    constant.
    """

    rho: float | None
    interval: tuple[float, float] | None
    p: float | None
    masks: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's rank correlation with a percentile bootstrap interval over masks, and a two-sided permutation test,
    (hits + 1) / (draws + 1). Both are seeded.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    rho = spearman(x, y) if len(x) >= FEWEST_MASKS else None
    if rho is None:
        return Correlation(None, None, None, len(x))
    generator = np.random.default_rng(SEED)
    ranks_x, ranks_y = _centred_ranks(x), _centred_ranks(y)
    orders = generator.permuted(np.tile(ranks_y, (DRAWS, 1)), axis=1)
    products = np.abs(orders @ ranks_x)
    hits = int((products >= abs(ranks_x @ ranks_y) * (1 - 1e-12)).sum())
    return Correlation(rho, _interval_of_rho(x, y), (hits + 1) / (DRAWS + 1), len(x))


def _interval_of_rho(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap interval of ρ. Draws with one side constant have no ρ, and are left out."""
    generator = np.random.default_rng(SEED)
    drawn = (generator.integers(len(x), size=len(x)) for _ in range(DRAWS // 10))
    found = [rho for places in drawn if (rho := spearman(x[places], y[places])) is not None]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    found = ranks(values)
    return found - found.mean()
