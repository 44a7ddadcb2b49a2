"""The cosine between the rows of two tensors, and its gradient, each in one pass over both in their own dtypes."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.reference import SMALLEST_NORM
from tamt_kernels.triton_kernels.common import launch, rounded, widen

# Columns per block: one program reads a row of BERT-base's 768, and its gradient finds the row in the cache.
LARGEST_BLOCK = 1024
WARPS = 4


@triton.jit
def _sums(constant, trained, columns, BLOCK: tl.constexpr):
    """The sum of the products of two rows, and the sums of the squares of each."""
    lane = tl.arange(0, BLOCK)
    product = tl.zeros((BLOCK,), tl.float32)
    squares, trained_squares = product, product
    for start in range(0, columns, BLOCK):
        inside = lane < columns - start
        c = widen(tl.load(constant + start + lane, mask=inside, other=0.0))
        t = widen(tl.load(trained + start + lane, mask=inside, other=0.0))
        product += c * t
        squares += c * c
        trained_squares += t * t
    return tl.sum(product), tl.sum(squares), tl.sum(trained_squares)


@triton.jit
def _norm(squares, SMALLEST: tl.constexpr):
    norm = tl.sqrt_rn(squares)
    return tl.where(norm < SMALLEST, SMALLEST, norm)  # unlike a maximum, this keeps NaN


@triton.jit
def cosine_kernel(constant, trained, cosine, columns, SMALLEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    product, squares, trained_squares = _sums(constant + row * columns, trained + row * columns, columns, BLOCK)
    tl.store(cosine + row, tl.div_rn(product, _norm(squares, SMALLEST) * _norm(trained_squares, SMALLEST)))


@triton.jit
def cosine_gradient_kernel(
    grad_cosine, constant, trained, grad, columns, SMALLEST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """g (c / (|c| |t|) - cos t / |t|²), without the second term if |t| is replaced by SMALLEST."""
    row = tl.program_id(0).to(tl.int64)
    constant, trained, grad = constant + row * columns, trained + row * columns, grad + row * columns
    product, squares, trained_squares = _sums(constant, trained, columns, BLOCK)
    norm = _norm(trained_squares, SMALLEST)
    towards = tl.div_rn(tl.load(grad_cosine + row), _norm(squares, SMALLEST) * norm)
    along = tl.where(norm <= SMALLEST, 0.0, tl.div_rn(towards * product, trained_squares))
    lane = tl.arange(0, BLOCK)
    for start in range(0, columns, BLOCK):
        inside = lane < columns - start
        c = widen(tl.load(constant + start + lane, mask=inside, other=0.0))
        t = widen(tl.load(trained + start + lane, mask=inside, other=0.0))
        tl.store(grad + start + lane, rounded(towards * c - along * t, grad.dtype.element_ty), mask=inside)


def _options(columns: int) -> dict[str, float]:
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(columns, 1)))
    return {"SMALLEST": SMALLEST_NORM, "BLOCK": block, "num_warps": WARPS}


def cosine(constant: Tensor, trained: Tensor) -> Tensor:
    cosines = torch.empty(trained.shape[:-1], dtype=torch.float32, device=trained.device)
    columns = trained.shape[-1]
    launch(
        cosine_kernel,
        (cosines.numel(),),
        constant.contiguous(),
        trained.contiguous(),
        cosines,
        columns,
        **_options(columns),
    )
    return cosines


def cosine_backward(grad_cosine: Tensor, constant: Tensor, trained: Tensor) -> Tensor:
    grad = torch.empty(trained.shape, dtype=trained.dtype, device=trained.device)
    columns = trained.shape[-1]
    launch(
        cosine_gradient_kernel, (grad_cosine.numel(),), grad_cosine.contiguous(), constant.contiguous(),
        trained.contiguous(), grad, columns, **_options(columns),
    )  # fmt: skip
    return grad
