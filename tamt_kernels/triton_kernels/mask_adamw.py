"""The step of ``MaskAdamW``: one launch updates every score and counts it for the thresholds while it is in registers.

A step of many matrices is as many launches as one of few. Per entry the update reads d(W ⊙ m), W, S and both
moments and writes the last three, 32 bytes in float32. Whether a step is taken at all is asked on the device.

W ⊙ m is written in the same pass, 2 bytes more to 16 bits, by the last threshold: those entries on whose side of it the
new one may lie are the candidates of the search, and masked again once it is known. To read W and S for all of them
would be 8 bytes more.

A step of BERT-base's 73 matrices takes 1.18 ms on an H200, a copy of the bytes that it must move 0.97 (commit 2ea63e7):
0.17 for the norm, 0.91 for the update, bound by memory at 32 warps of 64 registers on a processor, 0.04 to find the
thresholds and 0.05 to mask the weights again whose side they may have changed.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.reference import whole_gradient
from tamt_kernels.triton_kernels.common import (
    TYPES,
    Table,
    addresses,
    aligned,
    alike,
    goes,
    keeps,
    launch,
    pointer_at,
    read,
    rounded,
    table,
    widen,
)
from tamt_kernels.triton_kernels.threshold import (
    ADDRESS,
    AT_FIRST,
    COLUMNS,
    FIRST,
    FIRST_CANDIDATE,
    FIRST_SHARE,
    FIRST_TILE,
    IS_NAN,
    KEEP,
    LANES,
    SHARES,
    SIZE,
    STATE,
    Search,
    begin_count,
    collect,
    end_count,
    key_score,
    outside,
    searched,
)

WARPS = 8
# Entries of a warp at once, four a thread of each of five tensors: 64 registers, so that an H100 runs 32 warps on a
# processor. Of eight it would run 16.
PART = 128

# Columns of the table of the other operands; an offset from the first masked weight, or none.
WEIGHT, MEAN, SQUARE, OFFSET, OPERANDS = (tl.constexpr(i) for i in range(5))
NOT_MADE = tl.constexpr(-(1 << 62))


@triton.jit
def _write(pointer, value, inside, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=inside)


@triton.jit
def _update(
    grad, weight, score, mean, square, inside, factor, step_size, root, left, new_mean, old_square, new_square, eps,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """AdamW in the order, and with the roundings, of the definition; returns the weight and the new score.

    The square root is rounded right, which torch's on a CPU, MKL's, is not for seven entries in a thousand.
    """
    # All is read before anything is written: a compiler does not see that no address is another's.
    g, w, s = read(grad, inside, WHOLE), read(weight, inside, WHOLE), read(score, inside, WHOLE)
    m, v = read(mean, inside, WHOLE), read(square, inside, WHOLE)
    gradient = g * w * factor
    # torch interpolates from the nearer end.
    near = new_mean < 0.5
    m = tl.fma(tl.where(near, new_mean, new_mean - 1.0), gradient - m, tl.where(near, m, gradient))
    v = tl.fma(new_square * gradient, gradient, old_square * v)
    _write(mean, m, inside, WHOLE)
    _write(square, v, inside, WHOLE)
    s = s * left + tl.div_rn(-step_size * m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    _write(score, s, inside, WHOLE)
    return w, s


@triton.jit
def adamw_kernel(
    tile_matrix, rows, state, keys, indices, tile_ties, window_ties, operands, gradients, masked, rates,
    new_mean, old_square, new_square, eps,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, RENEW: tl.constexpr,
    ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Update the scores of a tile and, to renew the masks, take its share in the count of the window.

    Weights are masked by the last threshold, with all ties kept, for ``remask_kernel`` to mend.
    """
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    size = tl.where(goes(rates), tl.load(row + SIZE), 0)
    begin = (tile - tl.load(row + FIRST_TILE)) * TILE
    end = tl.minimum(begin + TILE, size)
    factor, step_size, root, left = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2), tl.load(rates + 3)
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
            w, new = _update(
                grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                factor, step_size, root, left, new_mean, old_square, new_square, eps, True,
            )  # fmt: skip
        else:
            w, new = _update(
                grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                factor, step_size, root, left, new_mean, old_square, new_square, eps, False,
            )  # fmt: skip
        if RENEW:
            # Some scores are read again, and masked weights may lie where gradients do.
            tl.debug_barrier()
            if masked is not None and offset != NOT_MADE:
                kept = (tl.abs(new) if ABSOLUTE else new) >= first
                result = rounded(tl.where(kept, w, 0.0), masked.dtype.element_ty)
                if start + PART <= end:
                    tl.store(masked + offset + entry, result)
                else:
                    tl.store(masked + offset + entry, result, mask=inside)
            part_above, found = outside(new, start, end, low, high, ABSOLUTE, PART, False)
            above += part_above
            if tl.max(found) > 0:
                part_nan, part_ties = collect(found, start, score, search, first, second, keys, indices, room, ABSOLUTE)
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
    """Mask those weights again of which the step could not know whether the new threshold keeps them.

    These are the candidates of the search, and the tiles with ties of the last threshold unless all are kept; or all
    weights of a matrix whose window did not serve, or of which nothing is kept. Where gradients lay in place of masked
    weights, they are made anew even if no step is taken: then no window serves, as nothing was counted.
    """
    matrix = tl.load(share_matrix + tl.program_id(0))
    row, search, operand = rows + matrix * COLUMNS, state + matrix * STATE, operands + matrix * OPERANDS
    share, shares = tl.program_id(0) - tl.load(row + FIRST_SHARE), tl.load(row + SHARES)
    offset, value, cut = tl.load(operand + OFFSET), tl.load(values + matrix), tl.load(cuts + matrix)
    weight, score = pointer_at(operand + WEIGHT, W_TYPE, ALIGNED), pointer_at(row + ADDRESS, tl.float32, ALIGNED)
    masked += offset
    served, count = searched(row, search)
    size = tl.where((offset != NOT_MADE) & (goes(rates) | OVERWRITTEN), tl.load(row + SIZE), 0)
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
    places: list[Tensor] | None = None,
) -> None:
    for name, some in (("scores", scores), ("means", means), ("squares", squares), ("masked", masked)):
        for i, each in enumerate(some):
            if not each.is_contiguous():
                raise ValueError(f"mask_adamw: {name}[{i}] has strides {each.stride()} but must be contiguous")
    if places is not None:
        grads = [whole_gradient(*each) for each in zip(grads, weights, places, strict=True)]
    pairs = zip(grads, masked, strict=True)
    overwritten = any(grad.numel() > 0 and grad.data_ptr() == each.data_ptr() for grad, each in pairs)
    grads, weights = alike(grads), alike(weights)
    search = Search(scores, keep, absolute)
    if renew:
        search.open(values)

    made = [each for each in masked if renew and each.numel() > 0]
    base, width = (made[0].data_ptr(), made[0].element_size()) if made else (0, 1)
    offsets = [(each.data_ptr() - base) // width if each.numel() > 0 else NOT_MADE.value for each in masked]

    def make() -> Table:
        lists = zip(weights, means, squares, strict=True)
        rows = [(*(each.data_ptr() for each in three), at) for three, at in zip(lists, offsets, strict=True)]
        return Table(rows, [0] * len(weights), values.device)

    written = (*means, *squares)
    key = ("mask_adamw", values.device, *(each.data_ptr() for each in (*weights, *written)), *offsets)
    operands, first_made = table(key, make).rows, made[0] if made else None
    how = {
        "W_TYPE": TYPES[weights[0].dtype],
        "ABSOLUTE": absolute,
        "ALIGNED": aligned((*grads, *weights, *scores, *written)) and all(offset % 16 == 0 for offset in offsets),
        "TILE": search.how["TILE"],
    }
    launch(
        adamw_kernel, search.tiles, *search.counted, operands, addresses(grads), first_made, rates,
        1 - beta1, beta2, 1 - beta2, eps,
        G_TYPE=TYPES[grads[0].dtype], RENEW=renew, **how, PART=PART, num_warps=1,
    )  # fmt: skip
    if not renew:
        return
    search.finish(values, cuts, None, rates)
    if made:
        launch(
            remask_kernel, search.shares, search.share_matrix, search.rows, search.state, search.keys, search.indices,
            search.window_ties, operands, values, cuts, first_made, rates,
            OVERWRITTEN=overwritten, **how, num_warps=WARPS,
        )  # fmt: skip
