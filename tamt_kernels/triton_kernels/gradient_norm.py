"""The norm of the straight-through products of all matrices together."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import same_type
from tamt_kernels.triton_kernels.ste_backward import launch_products, matrices_of, product_of_tile


@triton.jit
def norm_kernel(
    tile_matrix, rows, gradients, sums,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The sum of the squares of a tile's products."""
    product, _row, _start = product_of_tile(tile_matrix, rows, gradients, G_TYPE, W_TYPE, ALIGNED, TILE)
    wide = product.to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(wide * wide))


def gradient_norm(grads: list[Tensor], weights: list[Tensor]) -> Tensor:
    grads, weights = same_type(grads), same_type(weights)
    matrices = matrices_of(weights)
    # torch sums them in a fixed order. Atomic additions of floats would give other bits each time.
    sums = torch.empty(matrices.tile_matrix.numel(), dtype=torch.float64, device=weights[0].device)
    launch_products(norm_kernel, grads, weights, matrices, sums)
    return sums.sum().sqrt().to(torch.float32)
