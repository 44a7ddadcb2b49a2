"""W ⊙ m of one matrix: binarize, mask and cast in one pass."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import TILE, keeps, launch, read, rounded, tiles_of, write
from tamt_kernels.triton_kernels.pack import write_bits

WARPS = 8


@triton.jit
def mask_tile(
    weight, score, value, cut, masked, mask, bits, start, size,
    ABSOLUTE: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of one matrix: W ⊙ m to ``masked``, m to ``mask``, and m packed to ``bits``; None skips an output."""
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    tile_cut = tl.minimum(tl.maximum(cut - start, 0), TILE).to(tl.int32)
    kept = keeps(read(score + start + lane, inside, WHOLE), lane, value, tile_cut, ABSOLUTE)
    if not WHOLE:
        kept &= inside
    if masked is not None:
        w = read(weight + start + lane, inside, WHOLE)
        write(masked + start + lane, rounded(tl.where(kept, w, 0.0), masked.dtype.element_ty), inside, WHOLE)
    if mask is not None:
        write(mask + start + lane, kept.to(tl.uint8), inside, WHOLE)
    if bits is not None:
        write_bits(kept, bits, start, size, TILE)


@triton.jit
def mask_kernel(
    weight, score, value_pointer, cut_pointer, masked, mask, size, ABSOLUTE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """A tile of one matrix: W ⊙ m to ``masked`` or m to ``mask``, whichever is given."""
    start = tl.program_id(0).to(tl.int64) * TILE
    value, cut = tl.load(value_pointer), tl.load(cut_pointer)
    if start + TILE <= size:
        mask_tile(weight, score, value, cut, masked, mask, None, start, size, ABSOLUTE, TILE, True)
    else:
        mask_tile(weight, score, value, cut, masked, mask, None, start, size, ABSOLUTE, TILE, False)


def mask_weight(
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    dtype: torch.dtype | None = None,
    absolute: bool = False,
) -> Tensor:
    masked = torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)
    weight, score, size = weight.contiguous(), score.contiguous(), weight.numel()
    grid = (tiles_of(size, TILE),)
    launch(
        mask_kernel, grid, weight, score, value, cut, masked, None, size,
        ABSOLUTE=absolute, TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
    return masked
