"""The product with a masked weight that is masked on the way, for a few rows: no W ⊙ m is ever written.

With few rows a product waits for W, not for its multiplications: reading W and S once beats writing W ⊙ m and
reading it again. From some 64 rows on cuBLAS over a W ⊙ m written once per step is faster.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.dispatch import interpreted
from tamt_kernels.triton_kernels.common import TYPES, keeps, launch, rounded, tiles_of, widen

# Entries of W in a tile, along the output and along the sum. With 3,072 x 768, tiles of 32 outputs make 96 programs;
# the sum is split so that there are at least twice that many, for the 108-148 processors of a large GPU.
BLOCK_OUT = 32
PROGRAMS = 192
BLOCK_GRADIENT = 64
WARPS, STAGES = 8, 2


@triton.jit
def _product(a, b, total, UPCAST: tl.constexpr):
    """total + a b, in float32; float32 operands are not rounded to TF32, as torch does not by default."""
    if UPCAST:  # the interpreter multiplies no bfloat16
        a, b = widen(a), widen(b)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def product_kernel(
    x, weight, score, value_pointer, cut_pointer, bias, output, rows, outputs, length, piece,
    x_row, x_column, w_sum, w_out, s_sum, s_out, i_sum, i_out,
    TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_SUM: tl.constexpr,
):  # fmt: skip
    """output[r, o] = Σₛ x[r, s] (W ⊙ m)[s, o] over one piece of the sum; the strides say which way W lies."""
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part = tl.program_id(2)
    first = part * piece
    last = tl.minimum(first + piece, length)
    value, cut = tl.load(value_pointer), tl.load(cut_pointer)
    wide_row, wide_out = row.to(tl.int64)[:, None], out.to(tl.int64)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for begin in range(first, last, BLOCK_SUM):
        term = begin + tl.arange(0, BLOCK_SUM)
        wide_term = term.to(tl.int64)
        inside = (term[:, None] < last) & (out[None, :] < outputs)
        s = tl.load(score + wide_term[:, None] * s_sum + wide_out * s_out, mask=inside, other=0.0)
        w = tl.load(weight + wide_term[:, None] * w_sum + wide_out * w_out, mask=inside, other=0.0)
        kept = inside & keeps(s, wide_term[:, None] * i_sum + wide_out * i_out, value, cut, ABSOLUTE)
        masked = rounded(tl.where(kept, widen(w), 0.0), TYPE)
        is_x = (row[:, None] < rows) & (term[None, :] < last)
        a = tl.load(x + wide_row * x_row + wide_term[None, :] * x_column, mask=is_x, other=0.0)
        total = _product(a, masked, total, UPCAST)
    if bias is not None:
        total += widen(tl.load(bias + out, mask=out < outputs, other=0.0))[None, :]
    position = (part * rows + wide_row) * outputs + wide_out
    result = rounded(total, output.dtype.element_ty)
    tl.store(output + position, result, mask=(row[:, None] < rows) & (out[None, :] < outputs))


@triton.jit
def gradient_kernel(
    grad, x, weight, grad_score, rows, outputs, length, g_row, g_column, x_row, x_column, w_out, w_sum,
    UPCAST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dS = (dYᵀ X) ⊙ W, the product with W taken while dYᵀ X is still in registers (eq. 4)."""
    out = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    term = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for begin in range(0, rows, BLOCK_ROWS):
        row = (begin + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        is_g = (out[:, None] < outputs) & (row[None, :] < rows)
        g = tl.load(grad + row[None, :] * g_row + out[:, None] * g_column, mask=is_g, other=0.0)
        is_x = (row[:, None] < rows) & (term[None, :] < length)
        a = tl.load(x + row[:, None] * x_row + term[None, :] * x_column, mask=is_x, other=0.0)
        total = _product(g, a, total, UPCAST)
    inside = (out[:, None] < outputs) & (term[None, :] < length)
    w = widen(tl.load(weight + out[:, None] * w_out + term[None, :] * w_sum, mask=inside, other=0.0))
    product = rounded(total * w, grad_score.dtype.element_ty)
    tl.store(grad_score + out[:, None] * length + term[None, :], product, mask=inside)


def _blocks(rows: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows, and terms of the sum, in a tile. float32 has no tensor cores here: larger tiles of it spill."""
    most, terms = (32, 32) if dtype == torch.float32 else (64, 64)
    return min(most, max(16, triton.next_power_of_2(rows))), terms


def _upcast(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and interpreted()


def _masked_product(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None,
    absolute: bool,
    index_strides: tuple[int, int],
) -> Tensor:
    """x [..., s] times W ⊙ m, whose ``weight`` and ``score`` are given as [s, o]."""
    length, outputs = weight.shape
    rows = x.numel() // length if length else x.shape[:-1].numel()
    flat = x.reshape(rows, length)
    block_rows, block_sum = _blocks(rows, x.dtype)
    tiles = tiles_of(outputs, BLOCK_OUT) * tiles_of(rows, block_rows)
    parts = max(1, min(PROGRAMS // max(tiles, 1), tiles_of(length, 2 * block_sum)))
    piece = max(tiles_of(tiles_of(length, parts), block_sum), 1) * block_sum
    parts = max(tiles_of(length, piece), 1)
    # The parts are written apart and summed in order: atomics would give other bits each time.
    output = torch.empty(
        (parts, rows, outputs), dtype=x.dtype if parts == 1 else torch.float32, device=x.device
    )  # fmt: skip
    launch(
        product_kernel, (tiles_of(outputs, BLOCK_OUT), tiles_of(rows, block_rows), parts),
        flat, weight, score, value, cut, bias.contiguous() if bias is not None and parts == 1 else None, output,
        rows, outputs, length, piece, *flat.stride(), *weight.stride(), *score.stride(), *index_strides,
        TYPE=TYPES[x.dtype], ABSOLUTE=absolute, UPCAST=_upcast(x.dtype),
        BLOCK_ROWS=block_rows, BLOCK_OUT=BLOCK_OUT, BLOCK_SUM=block_sum, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    if parts == 1:
        return output.reshape(*x.shape[:-1], outputs)
    total = output.sum(dim=0)
    if bias is not None:
        total += bias
    return total.to(x.dtype).reshape(*x.shape[:-1], outputs)


def masked_matmul(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None = None,
    absolute: bool = False,
) -> Tensor:
    return _masked_product(x, weight.t(), score.t(), value, cut, bias, absolute, (1, weight.shape[1]))


def masked_matmul_backward_x(
    grad: Tensor, weight: Tensor, score: Tensor, value: Tensor, cut: Tensor, absolute: bool = False
) -> Tensor:
    return _masked_product(grad, weight, score, value, cut, None, absolute, (weight.shape[1], 1))


def masked_matmul_backward_score(grad: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    outputs, length = weight.shape
    grad_score = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    rows = grad.shape[:-1].numel()
    flat_grad, flat_x = grad.reshape(rows, outputs), x.reshape(rows, length)
    launch(
        gradient_kernel, (tiles_of(outputs, BLOCK_GRADIENT), tiles_of(length, BLOCK_GRADIENT)),
        flat_grad, flat_x, weight, grad_score, rows, outputs, length,
        *flat_grad.stride(), *flat_x.stride(), *weight.stride(),
        UPCAST=_upcast(x.dtype), BLOCK_ROWS=_blocks(rows, x.dtype)[0], BLOCK=BLOCK_GRADIENT,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return grad_score
