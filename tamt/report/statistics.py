"""The statistics of a report: mean and spread, paired differences with intervals, rank correlation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tamt.finetuning.metrics import spearman

FEWEST_PAIRS = 5
"""Fewest pairs for a bootstrap interval: three values have only ten different resamples."""
FEWEST_MASKS = 5
"""Fewest masks for a rank correlation: with four, even a perfect one has a chance of 1 in 12."""
DRAWS = 10_000
SEED = 0


@dataclass(frozen=True)
class Summary:
    """The mean of some runs. The standard deviation is that of a sample, with n − 1; None for one run."""

    mean: float
    std: float | None
    runs: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and number of one or more values."""
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


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
class Correlation:
    """Spearman's ρ and its p value; None with fewer than `FEWEST_MASKS` masks, or if one side is constant."""

    rho: float | None
    p: float | None
    masks: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's rank correlation with a seeded two-sided permutation test, (hits + 1) / (draws + 1)."""
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    rho = spearman(x, y) if len(x) >= FEWEST_MASKS else None
    if rho is None:
        return Correlation(None, None, len(x))
    generator = np.random.default_rng(SEED)
    ranks_x, ranks_y = _centred_ranks(x), _centred_ranks(y)
    orders = generator.permuted(np.tile(ranks_y, (DRAWS, 1)), axis=1)
    products = np.abs(orders @ ranks_x)
    hits = int((products >= abs(ranks_x @ ranks_y) * (1 - 1e-12)).sum())
    return Correlation(rho, (hits + 1) / (DRAWS + 1), len(x))


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks - ranks.mean()
