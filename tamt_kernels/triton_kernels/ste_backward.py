"""The straight-through products of all matrices in one launch. For one matrix, CUDA or plain torch computes them."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

from typing import Any

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
    launch,
    pointer_at,
    read,
    rounded,
    same_type,
    table,
    tiles_of,
)

WARPS = 8

# Columns of the table of matrices. The offset is that of the product.
WEIGHT, SIZE, FIRST_TILE, OFFSET, COLUMNS = (tl.constexpr(i) for i in range(5))


@triton.jit
def product_of_tile(
    tile_matrix, rows, gradients, G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr
):
    """d(W ⊙ m) ⊙ W of this program's tile, in float32, with zeros past the end of the matrix; the matrix's row in the
    table; and where in the matrix the tile begins.
    """
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row = rows + matrix * COLUMNS
    start = (tile - tl.load(row + FIRST_TILE)) * TILE
    size, lane = tl.load(row + SIZE), tl.arange(0, TILE)
    inside = lane < size - start
    grad = pointer_at(gradients + matrix, G_TYPE, ALIGNED) + start + lane
    weight = pointer_at(row + WEIGHT, W_TYPE, ALIGNED) + start + lane
    if start + TILE <= size:
        product = read(grad, inside, True) * read(weight, inside, True)
    else:
        product = read(grad, inside, False) * read(weight, inside, False)
    return product, row, start


@triton.jit
def products_kernel(
    tile_matrix, rows, gradients, products,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The products of a tile, rounded once."""
    product, row, start = product_of_tile(tile_matrix, rows, gradients, G_TYPE, W_TYPE, ALIGNED, TILE)
    size, offset, lane = tl.load(row + SIZE), tl.load(row + OFFSET), tl.arange(0, TILE)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    result, target = rounded(product, products.dtype.element_ty), products + offset + start + lane
    if start + TILE <= size:
        tl.store(target, result)
    else:
        tl.store(target, result, mask=lane < size - start)


def ste_backward_all(grads: list[Tensor], weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    sizes = [weight.numel() for weight in weights]
    # The definition has zeros in the gaps of up to 15 entries between matrices. BERT's matrices leave no gap.
    new = torch.zeros if any(size % 16 for size in sizes) else torch.empty
    products = new(group_offsets(sizes)[1], dtype=dtype, device=weights[0].device)
    grads, weights = same_type(grads), same_type(weights)
    launch_products(products_kernel, grads, weights, matrices_of(weights), products)
    return products


def matrices_of(weights: list[Tensor]) -> Table:
    device, sizes = weights[0].device, [weight.numel() for weight in weights]

    def make() -> Table:
        tiles = [tiles_of(size, TILE) for size in sizes]
        columns = zip(weights, sizes, group_offsets(sizes)[0], strict=True)
        rows = [(weight.data_ptr(), size, sum(tiles[:i]), offset) for i, (weight, size, offset) in enumerate(columns)]
        return Table(rows, tiles, device)

    return table(("ste_backward_all", device, TILE, *(weight.data_ptr() for weight in weights), *sizes), make)


def launch_products(kernel: Any, grads: list[Tensor], weights: list[Tensor], matrices: Table, result: Tensor) -> None:
    """Start a kernel on the products of all tiles."""
    launch(
        kernel, (matrices.tile_matrix.numel(),), matrices.tile_matrix, matrices.rows, addresses(grads), result,
        G_TYPE=TYPES[grads[0].dtype], W_TYPE=TYPES[weights[0].dtype], ALIGNED=aligned((*grads, *weights)), TILE=TILE,
        num_warps=WARPS,
    )  # fmt: skip
