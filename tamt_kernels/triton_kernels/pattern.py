"""Masks that keep n of each m neighbours, and W ⊙ m, of one matrix.

An entry is kept if fewer than n entries of its group come before it. Each of the m - 1 others is loaded once more for
that, from the cache, as a tile of whole groups has just been read.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import TILE, launch, read, rounded, tiles_of, widen

WARPS = 8


@triton.jit
def rank_of(score, ABSOLUTE: tl.constexpr):
    """What ranks an entry: its score, or the absolute value; NaN ranks like -inf."""
    rank = widen(score)
    if ABSOLUTE:
        rank = tl.abs(rank)
    return tl.where(rank != rank, -float("inf"), rank)


@triton.jit
def among_largest(scores, lane, rank, inside, N: tl.constexpr, M: tl.constexpr, ABSOLUTE: tl.constexpr):
    """Whether each entry is one of the N that its group keeps; of equal entries, the one of lower index comes first.

    ``scores`` points to the first of the lanes, which begin with a group.
    """
    place = lane % M
    before = tl.zeros_like(lane)
    for distance in range(1, M):
        other = (place + distance) % M
        score = tl.load(scores + (lane - place + other), mask=inside, other=0.0)
        against = rank_of(score, ABSOLUTE)
        before += ((against > rank) | ((against == rank) & (other < place))).to(tl.int32)
    return before < N


@triton.jit
def pattern_kernel(
    weight, score, masked, mask, size,
    N: tl.constexpr, M: tl.constexpr, ABSOLUTE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The whole groups of a tile: W ⊙ m to ``masked`` or m to ``mask``, whichever is given."""
    LENGTH: tl.constexpr = TILE // M * M
    start = tl.program_id(0).to(tl.int64) * LENGTH
    lane = tl.arange(0, TILE)
    inside = (lane < LENGTH) & (lane < size - start)
    rank = rank_of(tl.load(score + start + lane, mask=inside, other=0.0), ABSOLUTE)
    kept = among_largest(score + start, lane, rank, inside, N, M, ABSOLUTE)
    if masked is not None:
        w = read(weight + start + lane, inside, False)
        tl.store(masked + start + lane, rounded(tl.where(kept, w, 0.0), masked.dtype.element_ty), mask=inside)
    if mask is not None:
        tl.store(mask + start + lane, kept.to(tl.uint8), mask=inside)


def pattern_mask(score: Tensor, n: int, m: int, absolute: bool = False) -> Tensor:
    mask = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    _launch(None, score.contiguous(), None, mask.view(torch.uint8), n, m, absolute)
    return mask


def pattern_weight(
    weight: Tensor, score: Tensor, n: int, m: int, dtype: torch.dtype | None = None, absolute: bool = False
) -> Tensor:
    masked = torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)
    _launch(weight.contiguous(), score.contiguous(), masked, None, n, m, absolute)
    return masked


def _launch(
    weight: Tensor | None, score: Tensor, masked: Tensor | None, mask: Tensor | None, n: int, m: int, absolute: bool
) -> None:
    grid = (tiles_of(score.numel(), TILE // m * m),)
    launch(
        pattern_kernel, grid, weight, score, masked, mask, score.numel(),
        N=n, M=m, ABSOLUTE=absolute, TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
