"""The straight-through products of all matrices in one launch. Those of one matrix CUDA or torch take."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.reference import group_offsets
from tamt_kernels.triton_kernels.common import (
    TILE,
    TYPES,
    Table,
    addresses,
    aligned,
    alike,
    launch,
    pointer_at,
    read,
    rounded,
    table,
    tiles_of,
)

WARPS = 8


@triton.jit
def products_kernel(
    tile_matrix, rows, gradients, products,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of any of the matrices: d(W ⊙ m) ⊙ W, in float32 and rounded once."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row = rows + matrix * 4
    size, offset = tl.load(row + 1), tl.load(row + 2)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    start = (tile - tl.load(row + 3)) * TILE
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    grad = pointer_at(gradients + matrix, G_TYPE, ALIGNED) + start + lane
    weight = pointer_at(row, W_TYPE, ALIGNED) + start + lane
    product = products + offset + start + lane
    if start + TILE <= size:
        tl.store(product, rounded(read(grad, inside, True) * read(weight, inside, True), products.dtype.element_ty))
    else:
        result = read(grad, inside, False) * read(weight, inside, False)
        tl.store(product, rounded(result, products.dtype.element_ty), mask=inside)


def ste_backward_all(grads: list[Tensor], weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    device, sizes = weights[0].device, [each.numel() for each in weights]
    offsets, total = group_offsets(sizes)
    # Up to 15 entries lie between the matrices, zero by definition; BERT's matrices leave no gap to fill.
    new = torch.zeros if any(size % 16 for size in sizes) else torch.empty
    products = new(total, dtype=dtype, device=device)
    grads, weights = alike(grads), alike(weights)

    def make() -> Table:
        tiles = [tiles_of(size, TILE) for size in sizes]
        lie = zip(weights, sizes, offsets, strict=True)
        rows = [(w.data_ptr(), size, offset, sum(tiles[:i])) for i, (w, size, offset) in enumerate(lie)]
        return Table(rows, tiles, device)

    matrices = table(("ste_backward_all", device, TILE, *(each.data_ptr() for each in weights), *sizes), make)
    launch(
        products_kernel, (matrices.tile_matrix.numel(),), matrices.tile_matrix, matrices.rows, addresses(grads),
        products, G_TYPE=TYPES[grads[0].dtype], W_TYPE=TYPES[weights[0].dtype], ALIGNED=aligned((*grads, *weights)),
        TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
    return products
