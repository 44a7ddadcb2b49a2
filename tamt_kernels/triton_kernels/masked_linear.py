"""The product of a few rows with a weight that is masked as it is read: no W ⊙ m is written.

With few rows a product waits for W, not for its multiplications, so reading W and S once beats writing W ⊙ m and
reading it again: on an H200, for 768 → 3,072, one row takes 10.5 µs instead of 14.9, and 64 rows 12.1 µs instead of
15.3. For more rows cuBLAS with a W ⊙ m that is written once per step is faster.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.backend.dispatch import interpreted
from tamt_kernels.triton_kernels.common import TYPES, keeps, launch, rounded, tiles_of, widen

# With this many tiles of the output, one program each keeps the memory of a large GPU busy: a program has about 36 KB
# of S and W in flight, and an H100 needs 2 MB in all. With fewer tiles the sum is split into PROGRAMS programs.
ENOUGH_TILES, PROGRAMS = 96, 192
WARPS, STAGES = 4, 4
BLOCK_PARTS, PARTS_AT_ONCE = 128, 8
BLOCK_GRADIENT = 64
WARPS_GRADIENT, STAGES_GRADIENT = 8, 2


@triton.jit
def _product(a, b, total, UPCAST: tl.constexpr):
    """total + a b, in float32. As by default in torch, float32 operands are not rounded to TF32."""
    if UPCAST:  # the interpreter cannot multiply bfloat16
        a, b = widen(a), widen(b)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def product_kernel(
    x, weight, score, value_pointer, cut_pointer, bias, output, rows, outputs, length, piece,
    x_row, x_column, w_sum, w_out, i_sum, i_out,
    TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_SUM: tl.constexpr,
):  # fmt: skip
    """output[r, o] = Σₛ x[r, s] (W ⊙ m)[s, o] over one piece of the sum, for any strides of W and S."""
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first_out = tl.program_id(0) * BLOCK_OUT
    out_lane, term_lane = tl.arange(0, BLOCK_OUT), tl.arange(0, BLOCK_SUM)
    out = first_out + out_lane
    part = tl.program_id(2)
    first = part * piece
    value, cut = tl.load(value_pointer), tl.load(cut_pointer)
    cut -= first_out.to(tl.int64) * i_out + first.to(tl.int64) * i_sum  # relative to the tile, as the index below
    wide_row, wide_out = row.to(tl.int64)[:, None], out.to(tl.int64)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for begin in range(first, tl.minimum(first + piece, length), BLOCK_SUM):
        # A piece consists of whole tiles, so that only the ends need conditions. If an end is a multiple of 16, the
        # compiler knows that the entries of a 16-byte load are all inside or all outside.
        term = begin + term_lane
        wide_term = term.to(tl.int64)
        inside = (term[:, None] < length) & (out[None, :] < outputs)
        entry = wide_term[:, None] * w_sum + wide_out * w_out
        s = tl.load(score + entry, mask=inside, other=0.0)
        w = tl.load(weight + entry, mask=inside, other=0.0)
        is_x = (row[:, None] < rows) & (term[None, :] < length)
        a = tl.load(x + wide_row * x_row + wide_term[None, :] * x_column, mask=is_x, other=0.0)
        # The index within the tile has 32 bits. One of its terms is moved to the other side of the comparison, so that
        # an entry takes no addition.
        tile_cut = tl.minimum(tl.maximum(cut, 0), 0x7FFFFFFF).to(tl.int32)
        kept = keeps(s, (out_lane * i_out)[None, :], value, (tile_cut - term_lane * i_sum)[:, None], ABSOLUTE)
        if weight.dtype.element_ty != TYPE:
            w = rounded(widen(w), TYPE)
        total = _product(a, tl.where(kept, w, tl.zeros_like(w)), total, UPCAST)
        cut -= BLOCK_SUM * i_sum
    if bias is not None:
        total += widen(tl.load(bias + out, mask=out < outputs, other=0.0))[None, :]
    position = (part * rows + wide_row) * outputs + wide_out
    result = rounded(total, output.dtype.element_ty)
    tl.store(output + position, result, mask=(row[:, None] < rows) & (out[None, :] < outputs))


@triton.jit
def sum_kernel(parts, bias, output, size, outputs, count, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of ``count`` products over pieces, and the bias."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, AT_ONCE):
        part = first + tl.arange(0, AT_ONCE)[:, None]
        inside = (part < count) & (entry < size)[None, :]
        total += tl.sum(tl.load(parts + part * size + entry[None, :], mask=inside, other=0.0), axis=0)
    if bias is not None:
        total += widen(tl.load(bias + entry % outputs))
    tl.store(output + entry, rounded(total, output.dtype.element_ty), mask=entry < size)


@triton.jit
def gradient_kernel(
    grad, x, weight, grad_score, rows, outputs, length, g_row, g_column, x_row, x_column, w_out, w_sum,
    UPCAST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dS = (dYᵀ X) ⊙ W (eq. 4), multiplied by W while dYᵀ X is still in registers."""
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


def _blocks(rows: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows, outputs and terms of the sum in a tile.

    The fastest of those that never spill: on an H200 one row takes 10.5 µs, and 10.7 to 18.6 with ten other tiles; 64
    rows take 12.1 µs, and 12.7 to 16.4 with six others.
    """
    if dtype == torch.float32:  # without tensor cores, larger tiles spill
        return (16 if rows <= 16 else 32), 16, 32
    return (16, 16, 128) if rows <= 16 else ((32 if rows <= 32 else 64), 16, 64)


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
    """x [..., s] times W ⊙ m [s, o]; ``weight`` and ``score`` are [s, o] with any strides."""
    length, outputs = weight.shape
    rows = x.numel() // length if length else x.shape[:-1].numel()
    flat = x.reshape(rows, length)
    if weight.stride() != score.stride():  # Triton 3.8 needs the same layout for the mask and W
        weight, score = weight.contiguous(), score.contiguous()
    bias = bias.contiguous() if bias is not None else None
    block_rows, block_out, block_sum = _blocks(rows, x.dtype)
    grid = tiles_of(outputs, block_out), tiles_of(rows, block_rows)
    tiles = max(math.prod(grid), 1)
    parts = 1 if tiles >= ENOUGH_TILES else min(PROGRAMS // tiles, max(length // (2 * block_sum), 1))
    piece = max(tiles_of(tiles_of(length, parts), block_sum), 1) * block_sum
    parts = max(tiles_of(length, piece), 1)
    output = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
    # The parts are written separately and summed in order. Atomic additions would give other bits each time.
    products = output if parts == 1 else torch.empty((parts, rows, outputs), dtype=torch.float32, device=x.device)
    launch(
        product_kernel, (*grid, parts),
        flat, weight, score, value, cut, bias if parts == 1 else None, products,
        rows, outputs, length, piece, *flat.stride(), *weight.stride(), *index_strides,
        TYPE=TYPES[x.dtype], ABSOLUTE=absolute, UPCAST=_upcast(x.dtype),
        BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_SUM=block_sum, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    if parts > 1:
        launch(
            sum_kernel, (tiles_of(output.numel(), BLOCK_PARTS),), products, bias, output, output.numel(), outputs,
            parts, AT_ONCE=PARTS_AT_ONCE, BLOCK=BLOCK_PARTS, num_warps=1,
        )  # fmt: skip
    return output


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
        num_warps=WARPS_GRADIENT, num_stages=STAGES_GRADIENT,
    )  # fmt: skip
    return grad_score
