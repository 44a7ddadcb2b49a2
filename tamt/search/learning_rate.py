"""The default peak learning rate of a search."""

from typing import NamedTuple

from tamt.methods import Method


class ShortRun(NamedTuple):
    """The rate of short mask training: `travel` / steps, at most `ceiling`.

    Under linear decay a score travels at most rate × steps / 2, and must travel about 0.01 to change a mask entry.
    """

    travel: float
    ceiling: float


TWO_VALUED = ShortRun(travel=0.045, ceiling=1e-3)
"""Every entry is equally far from the threshold, so a rate that is too high changes all of them at once."""
GRADED = ShortRun(travel=0.18, ceiling=3e-4)
"""For scores by magnitude or activation, whose entries near the threshold change first. The ceiling is that of masks
which keep a fifth of the weights or more; see `_ceiling`."""

GROUPS = ShortRun(travel=0.015, ceiling=1e-4)
"""For the groups of a structure. Their importance differs less than that of weights, so the same rate would reorder
all of them."""


def default_rate(method: Method, scores: str, steps: int, sparsity: float, groups: bool = False) -> float | None:
    """The paper's rate (Table 1), raised for short mask training; None for a one-shot method.

    Measured on a 6-layer MiniLM, KD, 8 × 128 tokens per step: docs/method.md has the losses at several rates, for 50 to
    3,000 steps. Two-valued scores: 150 steps at 3e-4 train well, at 3e-3 they ruin the mask.

    Args:
        method: the method.
        scores: the kind of scores that mask training starts from.
        steps: optimizer steps of the run.
        sparsity: the share of zeros in each mask.
        groups: whether the scores are those of groups.
    """
    if method.lr is None or not method.trains_scores:
        return method.lr
    graded = GROUPS if groups else GRADED._replace(ceiling=_ceiling(sparsity))
    short = TWO_VALUED if scores == "two-valued" else graded
    return max(method.lr, min(short.ceiling, short.travel / steps))


def _ceiling(sparsity: float) -> float:
    """That of `GRADED`, up to twice as high for sparse masks: where few entries are kept, more of them must change."""
    return min(max(GRADED.ceiling, 0.2 * GRADED.ceiling / (1 - sparsity)), 2 * GRADED.ceiling)
