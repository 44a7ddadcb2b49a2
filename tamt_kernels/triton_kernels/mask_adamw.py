"""The step of ``MaskAdamW``: one launch updates every score and counts it for the thresholds while it is in registers.

The number of launches does not depend on the number of matrices. Per entry the update reads d(W ⊙ m), W, S and both
moments and writes the last three: 32 bytes in float32. The device decides whether the step is taken.

The same pass writes W ⊙ m by the last threshold, 2 more bytes in 16 bits. Entries that may lie on the other side of the
new threshold are the candidates of the search, and are masked again when it is known. To read W and S again for all
entries would take 8 more bytes.

On an H200 a step of BERT-base's 73 matrices takes 1.18 ms, and a copy of the bytes that it must move 0.97 ms.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.reference import whole_gradient
from tamt_kernels.triton_kernels.adamw import PART, check_contiguous, update, written_type
from tamt_kernels.triton_kernels.common import (
    TYPES,
    Table,
    addresses,
    aligned,
    is_finite,
    keeps,
    launch,
    pointer_at,
    rounded,
    same_type,
    table,
    widen,
)
from tamt_kernels.triton_kernels.threshold import ThresholdSearch
from tamt_kernels.triton_kernels.threshold_digits import search_range
from tamt_kernels.triton_kernels.threshold_keys import (
    ADDRESS,
    AT_FIRST,
    COLUMNS,
    FIRST,
    FIRST_CANDIDATE,
    FIRST_SHARE,
    FIRST_TILE,
    IS_NAN,
    KEEP,
    SHARES,
    SIZE,
    STATE,
    key_score,
)
from tamt_kernels.triton_kernels.threshold_window import LANES, begin_count, collect, end_count, split_part

WARPS = 8
# Columns of the table of the other operands. The offset is that from the first masked weight, or NOT_WRITTEN.
WEIGHT, MEAN, SQUARE, OFFSET, OPERANDS = (tl.constexpr(i) for i in range(5))
NOT_WRITTEN = tl.constexpr(-(1 << 62))


@triton.jit
def adamw_kernel(
    tile_matrix, rows, state, keys, indices, tile_ties, window_ties, operands, gradients, masked, rates,
    new_mean, old_square, new_square, eps,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, RENEW: tl.constexpr,
    ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Update the scores of a tile; to renew the masks, also count them for the window.

    Weights are masked by the last threshold with all ties kept. ``remask_kernel`` corrects those that are wrong.
    """
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    size = tl.where(is_finite(rates), tl.load(row + SIZE), 0)
    begin = (tile - tl.load(row + FIRST_TILE)) * TILE
    end = tl.minimum(begin + TILE, size)
    factor, step_size, root, decay = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2), tl.load(rates + 3)
    grad = pointer_at(gradients + matrix, G_TYPE, ALIGNED)
    operand = operands + matrix * OPERANDS
    weight = pointer_at(operand + WEIGHT, W_TYPE, ALIGNED)
    mean, square = pointer_at(operand + MEAN, tl.float32, ALIGNED), pointer_at(operand + SQUARE, tl.float32, ALIGNED)
    score = pointer_at(row + ADDRESS, tl.float32, ALIGNED)
    if RENEW:
        offset = tl.load(operand + OFFSET)
        if ALIGNED:
            offset = tl.multiple_of(offset, 16)
        low, high, first, second, keys, indices, room = begin_count(row, search, keys, indices)
    above, is_nan, ties = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
    for start in range(begin, end, PART):
        entry = start + tl.arange(0, PART)
        inside = entry < size
        if start + PART <= end:
            w, new = update(
                grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                factor, step_size, root, decay, new_mean, old_square, new_square, eps, True,
            )  # fmt: skip
        else:
            w, new = update(
                grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                factor, step_size, root, decay, new_mean, old_square, new_square, eps, False,
            )  # fmt: skip
        if RENEW:
            # Some scores are read again below, and masked weights may lie where gradients do.
            tl.debug_barrier()
            if masked is not None and offset != NOT_WRITTEN:
                kept = (tl.abs(new) if ABSOLUTE else new) >= first
                result = rounded(tl.where(kept, w, 0.0), masked.dtype.element_ty)
                if start + PART <= end:
                    tl.store(masked + offset + entry, result)
                else:
                    tl.store(masked + offset + entry, result, mask=inside)
            part_above, inside_window = split_part(new, start, end, low, high, ABSOLUTE, PART, False)
            above += part_above
            if tl.max(inside_window) > 0:
                part_nan, part_ties = collect(
                    inside_window, start, score, search, first, second, keys, indices, room, ABSOLUTE
                )  # fmt: skip
                is_nan += part_nan
                ties += part_ties
    if RENEW:
        end_count(tl.sum(above), is_nan, ties, tile, search, tile_ties, window_ties)


@triton.jit
def _mask(weight, masked, index, kept, inside):
    w = widen(tl.load(weight + index, mask=inside, other=0.0))
    tl.store(masked + index, rounded(tl.where(kept, w, 0.0), masked.dtype.element_ty), mask=inside)


@triton.jit
def remask_kernel(
    share_matrix, rows, state, keys, indices, window_ties, operands, values, cuts, masked, rates,
    W_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, OVERWRITTEN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mask again the weights for which the step could not know whether the new threshold keeps them.

    These are the candidates of the search, and tiles with ties of the last threshold unless all ties are kept. If a
    window did not serve, or nothing is kept, they are all weights of the matrix. Masked weights that gradients have
    overwritten are written even if no step is taken; then no window serves, as nothing was counted.
    """
    matrix = tl.load(share_matrix + tl.program_id(0))
    row, search, operand = rows + matrix * COLUMNS, state + matrix * STATE, operands + matrix * OPERANDS
    share, shares = tl.program_id(0) - tl.load(row + FIRST_SHARE), tl.load(row + SHARES)
    offset, value, cut = tl.load(operand + OFFSET), tl.load(values + matrix), tl.load(cuts + matrix)
    weight, score = pointer_at(operand + WEIGHT, W_TYPE, ALIGNED), pointer_at(row + ADDRESS, tl.float32, ALIGNED)
    masked += offset
    served, count = search_range(row, search)
    size = tl.where((offset != NOT_WRITTEN) & (is_finite(rates) | OVERWRITTEN), tl.load(row + SIZE), 0)
    all_again = (served == 0) | (tl.load(search + IS_NAN) != 0) | (tl.load(row + KEEP) == 0)
    tied = (tl.load(search + AT_FIRST) > 0) & (value >= key_score(tl.load(search + FIRST).to(tl.int32)))
    lane = tl.arange(0, TILE)
    first, step = share * TILE, shares * TILE
    if all_again | tied:
        for start in range(first, size, step):
            if all_again | ((tl.load(window_ties + tl.load(row + FIRST_TILE) + start // TILE) & 0xFFFF) > 0):
                index, inside = start + lane, lane < size - start
                kept = keeps(tl.load(score + index, mask=inside, other=0.0), index, value, cut, ABSOLUTE)
                _mask(weight, masked, index, kept, inside)
    if all_again == 0:
        for start in range(first, tl.where(size > 0, count, 0), step):
            candidate, inside = tl.load(row + FIRST_CANDIDATE) + start + lane, lane < count - start
            index = tl.load(indices + candidate, mask=inside, other=0)
            rank = key_score(tl.load(keys + candidate, mask=inside, other=0))
            _mask(weight, masked, index, keeps(rank, index, value, cut, False), inside)


def mask_adamw(
    grads: list[Tensor],
    weights: list[Tensor],
    scores: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masked: list[Tensor],
    values: Tensor,
    cuts: Tensor,
    keep: list[int],
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    renew: bool = True,
    absolute: bool = False,
    grad_rows: list[Tensor] | None = None,
) -> None:
    check_contiguous("mask_adamw", scores=scores, means=means, squares=squares, masked=masked)
    if grad_rows is not None:
        grads = [whole_gradient(*parts) for parts in zip(grads, weights, grad_rows, strict=True)]
    pairs = zip(grads, masked, strict=True)
    overwritten = any(grad.numel() > 0 and grad.data_ptr() == target.data_ptr() for grad, target in pairs)
    grads, weights = same_type(grads), same_type(weights)
    search = ThresholdSearch(scores, keep, absolute)
    if renew:
        search.open(values)

    written_type("mask_adamw", masked)
    written = [target for target in masked if renew and target.numel() > 0]
    base, width = (written[0].data_ptr(), written[0].element_size()) if written else (0, 1)
    offsets = [(target.data_ptr() - base) // width if target.numel() > 0 else NOT_WRITTEN.value for target in masked]

    operands, first_written = _operands(weights, means, squares, offsets), written[0] if written else None
    moments = (*means, *squares)
    options = {
        "W_TYPE": TYPES[weights[0].dtype],
        "ABSOLUTE": absolute,
        "ALIGNED": aligned((*grads, *weights, *scores, *moments)) and all(offset % 16 == 0 for offset in offsets),
        "TILE": search.options["TILE"],
    }
    launch(
        adamw_kernel, search.tiles, *search.count_arguments, operands, addresses(grads), first_written, rates,
        1 - beta1, beta2, 1 - beta2, eps,
        G_TYPE=TYPES[grads[0].dtype], RENEW=renew, **options, PART=PART, num_warps=1,
    )  # fmt: skip
    if not renew:
        return
    search.finish(values, cuts, None, rates)
    if written:
        launch(
            remask_kernel, search.shares, search.share_matrix, search.rows, search.state, search.keys, search.indices,
            search.window_ties, operands, values, cuts, first_written, rates,
            OVERWRITTEN=overwritten, **options, num_warps=WARPS,
        )  # fmt: skip


def _operands(weights: list[Tensor], means: list[Tensor], squares: list[Tensor], offsets: list[int]) -> Tensor:
    """The table of the operands besides scores and gradients, with the columns above."""
    device = weights[0].device

    def make() -> Table:
        operands = zip(weights, means, squares, offsets, strict=True)
        rows = [(*(tensor.data_ptr() for tensor in tensors), offset) for *tensors, offset in operands]
        return Table(rows, [0] * len(weights), device)

    key = ("mask_adamw", device, *(tensor.data_ptr() for tensor in (*weights, *means, *squares)), *offsets)
    return table(key, make).rows
