"""An embedding over a masked weight: rows are masked as they are looked up, and no other row is touched."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import keeps, launch, rounded, tiles_of, widen

# Look-ups and columns per program: a warp reads 256 columns of a row by loads of 16 bytes, and BERT-base's 768 columns
# are three such blocks with no idle lane. The 1,536 programs of 2,048 look-ups all run at once on an H100's 132
# processors.
LOOKUPS, LARGEST_BLOCK = 4, 256
LARGEST_GRADIENT_BLOCK = 1024


@triton.jit
def lookup_kernel(
    ids, weight, score, value_pointer, cut_pointer, output, lookups, rows, columns,
    ABSOLUTE: tl.constexpr, LOOKUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of columns of a few look-ups. For an id out of range nothing is read, and the row is NaN."""
    lookup = tl.program_id(0).to(tl.int64) * LOOKUPS + tl.arange(0, LOOKUPS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_lookup, is_column = (lookup < lookups)[:, None], (column < columns)[None, :]
    row = tl.load(ids + lookup, mask=lookup < lookups, other=-1).to(tl.int64)
    known = ((row >= 0) & (row < rows))[:, None]
    first = row * columns
    entry = first[:, None] + column[None, :]
    # All entries of W are read, not only those that are kept: that would wait for S, and save no sector of 16 entries.
    s = tl.load(score + entry, mask=known & is_column, other=0.0)
    w = tl.load(weight + entry, mask=known & is_column, other=0.0)
    row_cut = tl.minimum(tl.maximum(tl.load(cut_pointer) - first, 0), columns).to(tl.int32)
    kept = keeps(s, column[None, :], tl.load(value_pointer), row_cut[:, None], ABSOLUTE)
    w = tl.where(known, tl.where(kept, widen(w), 0.0), float("nan"))
    position = lookup[:, None] * columns + column[None, :]
    tl.store(output + position, rounded(w, output.dtype.element_ty), mask=is_lookup & is_column)


@triton.jit
def gradient_kernel(
    sorted_ids, order, ends, grad_output, weight, grad_score, rows, columns, padding, BLOCK: tl.constexpr
):
    """A block of columns of one row: the sum over its look-ups, times W.

    The look-ups are sorted by row. The program of a row's first look-up sums all of them in order, so the result is the
    same each time; the programs of the others do nothing.
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


def _block(columns: int, largest: int) -> int:
    return min(largest, triton.next_power_of_2(max(columns, 1)))


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
    block = _block(columns, LARGEST_BLOCK)
    launch(
        lookup_kernel, (tiles_of(ids.numel(), LOOKUPS), tiles_of(columns, block)),
        ids.contiguous(), weight.contiguous(), score.contiguous(), value, cut, output, ids.numel(), rows, columns,
        ABSOLUTE=absolute, LOOKUPS=LOOKUPS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return output


def masked_embedding_backward(
    grad_output: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    rows, columns = weight.shape
    grad_score = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    sorted_ids, order = ids.reshape(-1).sort(stable=True)
    ends = torch.searchsorted(sorted_ids, sorted_ids, right=True)
    block = _block(columns, LARGEST_GRADIENT_BLOCK)
    launch(
        gradient_kernel, (ids.numel(), tiles_of(columns, block)),
        sorted_ids, order, ends, grad_output.contiguous(), weight.contiguous(), grad_score,
        rows, columns, -1 if padding_idx is None else padding_idx, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return grad_score
