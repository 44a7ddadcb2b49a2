"""W ⊙ m of many matrices, and their packed masks, in one launch."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.reference import group_offsets
from tamt_kernels.triton_kernels.common import (
    TILE,
    TYPES,
    Table,
    aligned,
    launch,
    pointer_at,
    same_type,
    table,
    tiles_of,
)
from tamt_kernels.triton_kernels.mask_weight import WARPS, mask_tile


@triton.jit
def group_kernel(
    tile_matrix, rows, values, cuts, masked, bits,
    W_TYPE: tl.constexpr, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of one of the matrices: W ⊙ m to ``masked`` and, if given, m packed to ``bits``."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row = rows + matrix * 5
    weight = pointer_at(row, W_TYPE, ALIGNED)
    score = pointer_at(row + 1, S_TYPE, ALIGNED)
    size = tl.load(row + 2)
    offset = tl.load(row + 3)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    start = (tile - tl.load(row + 4)) * TILE
    value, cut = tl.load(values + matrix), tl.load(cuts + matrix)
    masked += offset
    if bits is not None:
        bits += offset // 8
    if start + TILE <= size:
        mask_tile(weight, score, value, cut, masked, None, bits, start, size, ABSOLUTE, TILE, True)
    else:
        mask_tile(weight, score, value, cut, masked, None, bits, start, size, ABSOLUTE, TILE, False)


def mask_weights(
    weights: list[Tensor],
    scores: list[Tensor],
    values: Tensor,
    cuts: Tensor,
    dtype: torch.dtype,
    pack: bool = False,
    absolute: bool = False,
) -> tuple[Tensor, Tensor]:
    device = values.device
    sizes = [weight.numel() for weight in weights]
    offsets, total = group_offsets(sizes)
    # The definition has zeros in the gaps of up to 15 entries between matrices. BERT's matrices leave no gap.
    new = torch.zeros if any(size % 16 for size in sizes) else torch.empty
    masked = new(total, dtype=dtype, device=device)
    bits = torch.zeros(total // 8 if pack else 0, dtype=torch.uint8, device=device)
    if not total:
        return masked, bits
    weights, scores = same_type(weights), same_type(scores)

    def make() -> Table:
        tiles = [tiles_of(size, TILE) for size in sizes]
        first = [sum(tiles[:i]) for i in range(len(tiles))]
        pairs = [(w.data_ptr(), s.data_ptr()) for w, s in zip(weights, scores, strict=True)]
        rows = [(*pair, *rest) for pair, *rest in zip(pairs, sizes, offsets, first, strict=True)]
        return Table(rows, tiles, device)

    pointers = [tensor.data_ptr() for tensor in (*weights, *scores)]
    matrices = table(("mask_weights", device, TILE, *pointers, *sizes, *offsets), make)
    launch(
        group_kernel, (matrices.tile_matrix.numel(),), matrices.tile_matrix, matrices.rows,
        values.contiguous(), cuts.contiguous(), masked, bits if pack else None,
        W_TYPE=TYPES[weights[0].dtype], S_TYPE=TYPES[scores[0].dtype], ABSOLUTE=absolute,
        ALIGNED=aligned((*weights, *scores)) and all(offset % 16 == 0 for offset in offsets), TILE=TILE,
        num_warps=WARPS,
    )  # fmt: skip
    return masked, bits
