"""An embedding over a masked weight: the rows looked up are masked on the way, no other is touched."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import keeps, launch, rounded, tiles_of, widen

# Columns that a program handles: BERT-base's 768 are one block with a quarter of it idle; halves would leave less for
# each program to do than its launch takes.
LARGEST_BLOCK = 1024


@triton.jit
def lookup_kernel(
    ids, weight, score, value_pointer, cut_pointer, output, rows, columns,
    ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of columns of one look-up. An id out of range reads nothing and gives NaN."""
    position = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    row = tl.load(ids + position).to(tl.int64)
    known = column < tl.where((row >= 0) & (row < rows), columns, 0)
    index = row * columns + column
    s = tl.load(score + index, mask=known, other=0.0)
    kept = keeps(s, index, tl.load(value_pointer), tl.load(cut_pointer), ABSOLUTE)
    w = widen(tl.load(weight + index, mask=known & kept, other=0.0))
    w = tl.where(known, tl.where(kept, w, 0.0), float("nan"))
    tl.store(output + position * columns + column, rounded(w, output.dtype.element_ty), mask=inside)


@triton.jit
def gradient_kernel(
    sorted_ids, order, ends, grad_output, weight, grad_score, rows, columns, padding, BLOCK: tl.constexpr
):
    """A block of columns of one row looked up: the sum over its look-ups, times W.

    The look-ups are sorted by row; the program of the first one of a row sums them in their order, so the
    result is the same each time, and the programs of the others have nothing to do.
    """
    position = tl.program_id(0)
    row = tl.load(sorted_ids + position).to(tl.int64)
    before = tl.load(sorted_ids + position - 1, mask=position > 0, other=-1).to(tl.int64)
    if (row != before) & (row != padding) & (row >= 0) & (row < rows):
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        total = tl.zeros((BLOCK,), tl.float32)
        for lookup in range(position, tl.load(ends + position)):
            source = tl.load(order + lookup) * columns
            total += widen(tl.load(grad_output + source + column, mask=inside, other=0.0))
        index = row * columns + column
        product = total * widen(tl.load(weight + index, mask=inside, other=0.0))
        tl.store(grad_score + index, rounded(product, grad_score.dtype.element_ty), mask=inside)


def _grid(lookups: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(columns, 1)))
    return (lookups, tiles_of(columns, block)), {"BLOCK": block, "num_warps": 4}


def masked_embedding(
    ids: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    padding_idx: int | None = None,
    absolute: bool = False,
) -> Tensor:
    rows, columns = weight.shape
    output = torch.empty((*ids.shape, columns), dtype=weight.dtype, device=weight.device)
    grid, options = _grid(ids.numel(), columns)
    launch(
        lookup_kernel, grid, ids.contiguous(), weight.contiguous(), score.contiguous(), value, cut, output,
        rows, columns, ABSOLUTE=absolute, **options,
    )  # fmt: skip
    return output


def masked_embedding_backward(
    grad_output: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    rows, columns = weight.shape
    grad_score = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    sorted_ids, order = ids.reshape(-1).sort(stable=True)
    ends = torch.searchsorted(sorted_ids, sorted_ids, right=True)
    grid, options = _grid(ids.numel(), columns)
    launch(
        gradient_kernel, grid, sorted_ids, order, ends, grad_output.contiguous(), weight.contiguous(), grad_score,
        rows, columns, -1 if padding_idx is None else padding_idx, **options,
    )  # fmt: skip
    return grad_score
