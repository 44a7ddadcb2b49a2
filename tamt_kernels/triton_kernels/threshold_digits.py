"""The end of a search: the digits of the threshold among the candidates, and the last tie that is kept."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import triton
import triton.language as tl

from tamt_kernels.triton_kernels.common import is_finite
from tamt_kernels.triton_kernels.threshold_keys import (
    ABOVE,
    AT_FIRST,
    AT_SECOND,
    BINS,
    CANDIDATES,
    COLUMNS,
    DIGITS,
    FINISHED,
    FIRST,
    FIRST_CANDIDATE,
    FIRST_SHARE,
    FIRST_TILE,
    HIGH,
    IS_NAN,
    KEEP,
    LAST,
    LOW,
    PREFIX,
    RANK,
    ROOM,
    SECOND,
    SHARES,
    SIZE,
    STATE,
    TIED,
    TILES,
    key_score,
    load_keys,
)

# Limits of the reach of a warm window, in keys.
MIN_REACH, MAX_REACH = tl.constexpr(1 << 10), tl.constexpr(1 << 20)


@triton.jit
def search_range(row, search):
    """Whether the window served: it holds the threshold, and all of its entries were collected. And the number of
    entries to search: the candidates if it served, else all scores.
    """
    above, candidates, keep = tl.load(search + ABOVE), tl.load(search + CANDIDATES), tl.load(row + KEEP)
    within = (above < keep) & (keep <= above + candidates + tl.load(search + AT_FIRST) + tl.load(search + AT_SECOND))
    served = (keep == 0) | (within & (candidates <= tl.load(row + ROOM)))
    return served, tl.where(served, tl.where(keep > 0, candidates, 0), tl.load(row + SIZE))


@triton.jit
def _load_searched(
    row, start, count, served, keys,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The keys of a tile of what is searched: of the candidates, or of all scores."""
    lane = tl.arange(0, TILE)
    if served:
        key = tl.load(keys + tl.load(row + FIRST_CANDIDATE) + start + lane, mask=lane < count - start, other=0)
    else:
        key = load_keys(row, start, count, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    return key


@triton.jit
def _key_range(search, served):
    """The lowest key that is searched, and in how many bits the others differ from it."""
    low, high = tl.load(search + LOW).to(tl.int32), tl.load(search + HIGH).to(tl.int32)
    low = tl.where(served, low, -2147483648)
    span = tl.where(served, high - low, -1).to(tl.uint32, bitcast=True)
    bits = tl.full((), 0, tl.int32)
    for i in tl.static_range(32):
        bits += ((span >> i) != 0).to(tl.int32)
    return low, bits


@triton.jit
def _bits_left(bits, DIGIT: tl.constexpr):
    """How many bits remain after the digits up to and including DIGIT."""
    return tl.maximum(bits - 8 * DIGIT, 0)


@triton.jit
def _digit(key, low, bits, DIGIT: tl.constexpr):
    """A key's distance from the lowest one: the digits before DIGIT, and that digit. Digit 1 has the highest bits."""
    left = _bits_left(bits, DIGIT)
    upto = (key.to(tl.uint32, bitcast=True) - low.to(tl.uint32, bitcast=True)) >> left.to(tl.uint32)
    if DIGIT == 1:
        before, digit = upto * 0, upto
    else:
        width = (_bits_left(bits, DIGIT - 1) - left).to(tl.uint32)
        before = upto >> width
        digit = upto - (before << width)
    return before.to(tl.int32, bitcast=True), digit.to(tl.int32, bitcast=True)


@triton.jit
def _select(row, search, histograms, served, low, bits, DIGIT: tl.constexpr):
    """The threshold's rank among the entries that share its digits up to and including DIGIT, and these digits."""
    rank = tl.load(row + KEEP) - tl.where(served, tl.load(search + ABOVE), 0)
    prefix = tl.full((), 0, tl.int32)
    if DIGIT > 0:
        if DIGIT > 1:
            rank, prefix = tl.load(search + RANK + DIGIT - 1), tl.load(search + PREFIX + DIGIT - 1).to(tl.int32)
        bins = tl.arange(0, BINS)
        counts = tl.load(histograms + (DIGIT - 1) * BINS + bins)
        # The ties of these two keys were counted, not collected.
        first, first_digit = _digit(tl.load(search + FIRST).to(tl.int32), low, bits, DIGIT)
        second, second_digit = _digit(tl.load(search + SECOND).to(tl.int32), low, bits, DIGIT)
        counts += tl.where(served & (first == prefix) & (bins == first_digit), tl.load(search + AT_FIRST), 0)
        counts += tl.where(served & (second == prefix) & (bins == second_digit), tl.load(search + AT_SECOND), 0)
        at_least = tl.sum(counts) - tl.cumsum(counts, axis=0) + counts  # entries of this digit or a larger one
        digit = tl.maximum(tl.sum((at_least >= rank).to(tl.int32)) - 1, 0)
        rank -= tl.sum(tl.where(bins == digit, at_least - counts, 0))
        prefix = (prefix << (_bits_left(bits, DIGIT - 1) - _bits_left(bits, DIGIT))) | digit
    return rank, prefix


@triton.jit
def histogram_kernel(
    share_matrix, rows, state, keys, histograms,
    DIGIT: tl.constexpr, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count the values of a digit among the entries that share the threshold's digits before it.

    Each program finds these digits itself, from the histogram that the previous launch has completed. Where the keys do
    not differ in that many bits there is nothing to count.
    """
    matrix = tl.load(share_matrix + tl.program_id(0))
    row, search, histograms = rows + matrix * COLUMNS, state + matrix * STATE, histograms + matrix * (DIGITS * BINS)
    share, shares = tl.program_id(0) - tl.load(row + FIRST_SHARE), tl.load(row + SHARES)
    served, count = search_range(row, search)
    low, bits = _key_range(search, served)
    rank, prefix = _select(row, search, histograms, served, low, bits, DIGIT - 1)
    count = tl.where(_bits_left(bits, DIGIT - 1) > 0, count, 0)
    if share == 0:
        tl.store(search + RANK + DIGIT - 1, rank)
        tl.store(search + PREFIX + DIGIT - 1, prefix.to(tl.int64))
    lane, bins = tl.arange(0, TILE), tl.arange(0, BINS)
    histogram = tl.zeros((BINS,), tl.int32)
    for start in range(share * TILE, count, shares * TILE):
        key = _load_searched(row, start, count, served, keys, S_TYPE, ABSOLUTE, ALIGNED, TILE)
        before, digit = _digit(key, low, bits, DIGIT)
        valid = (lane < count - start) & (before == prefix)
        # tl.histogram counts the other entries as zeros, so they are subtracted there.
        others = TILE - tl.sum(valid.to(tl.int32))
        histogram += tl.histogram(tl.where(valid, digit, 0), BINS) - tl.where(bins == 0, others, 0)
    tl.atomic_add(histograms + (DIGIT - 1) * BINS + bins, histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")


@triton.jit
def _locate(
    row, search, threshold, rank, served, ties, window_ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The index after the last tie that is kept. The ties in each tile give the tile, and its keys the entry."""
    first_tile, tiles, size = tl.load(row + FIRST_TILE), tl.load(row + TILES), tl.load(row + SIZE)
    at_first, at_second = tl.load(search + FIRST) == threshold, tl.load(search + SECOND) == threshold
    counted_ties = ties
    if served & (at_first | at_second):
        counted_ties = window_ties
    shift = tl.where(served & at_second, 16, 0)
    block = tl.arange(0, BLOCK)
    total = tl.full((), 0, tl.int64)
    tile = tl.full((), 0, tl.int64)
    before = tl.full((), 0, tl.int64)
    for first in range(0, tiles, BLOCK):
        valid = block < tiles - first
        counts = (tl.load(counted_ties + first_tile + first + block, mask=valid, other=0) >> shift) & 0xFFFF
        upto = total + tl.cumsum(counts.to(tl.int64), axis=0)
        short = valid & (upto < rank)
        tile += tl.sum(short.to(tl.int64))
        before = tl.maximum(before, tl.max(tl.where(short, upto, 0), axis=0))
        total += tl.sum(counts.to(tl.int64))
    start = tile * TILE
    key = load_keys(row, tl.minimum(start, size), size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    equal = (tl.arange(0, TILE) < size - start) & (key == threshold)
    upto = before + tl.cumsum(equal.to(tl.int32), axis=0)
    return start + tl.sum((upto < rank).to(tl.int32)) + 1


@triton.jit
def _next_reach(reach, moved, crowded):
    """How far the next window reaches on either side of the threshold, which has ``moved`` from the last one."""
    wanted = tl.where(crowded, tl.maximum(reach // 4, moved + moved // 4), tl.maximum(reach - reach // 32, 4 * moved))
    return tl.minimum(tl.maximum(wanted, MIN_REACH), MAX_REACH).to(tl.int32)


@triton.jit
def ties_kernel(
    share_matrix, rows, state, keys, indices, histograms, tile_ties, window_ties, reach, values, cuts, has_nan, factor,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count in each tile the entries equal to the threshold, all of whose digits are known now.

    The program that finishes last of its matrix finds the last tie that is kept, and writes the results.
    """
    matrix = tl.load(share_matrix + tl.program_id(0))
    row, search, histograms = rows + matrix * COLUMNS, state + matrix * STATE, histograms + matrix * (DIGITS * BINS)
    share, shares = tl.program_id(0) - tl.load(row + FIRST_SHARE), tl.load(row + SHARES)
    served, count = search_range(row, search)
    low, bits = _key_range(search, served)
    rank, distance = _select(row, search, histograms, served, low, bits, DIGITS)
    threshold = low + distance
    lane = tl.arange(0, TILE)
    ties = tile_ties + tl.load(row + FIRST_TILE)
    if served:
        for start in range(share * TILE, count, shares * TILE):
            candidate, valid = tl.load(row + FIRST_CANDIDATE) + start, lane < count - start
            equal = valid & (tl.load(keys + candidate + lane, mask=valid, other=0) == threshold)
            index = tl.load(indices + candidate + lane, mask=equal, other=0)
            tl.atomic_add(ties + index // TILE, 1, mask=equal, sem="relaxed")
            tied = tl.sum(equal.to(tl.int64))
            if tied > 0:
                tl.atomic_add(search + TIED, tied, sem="relaxed")
                tl.atomic_max(search + LAST, tl.max(index, axis=0).to(tl.int64), sem="relaxed")
    else:
        for start in range(share * TILE, count, shares * TILE):
            key = load_keys(row, start, count, S_TYPE, ABSOLUTE, ALIGNED, TILE)
            equal = (lane < count - start) & (key == threshold)
            tl.store(ties + start // TILE, tl.sum(equal.to(tl.int32)))
    # All threads have counted before one of them announces it, and all of them get the answer.
    tl.debug_barrier()
    if tl.atomic_add(search + FINISHED, tl.full((), 1, tl.int64), sem="acq_rel") == shares - 1:
        if served & (tl.load(search + TIED) == rank):  # all ties are kept, as a single one always is
            cut = tl.load(search + LAST) + 1
        else:
            cut = _locate(
                row, search, threshold, rank, served, tile_ties, window_ties, S_TYPE, ABSOLUTE, ALIGNED, TILE, BLOCK
            )  # fmt: skip
        keeps_none, is_nan, finite = tl.load(row + KEEP) == 0, tl.load(search + IS_NAN) != 0, is_finite(factor)
        value = tl.where(is_nan, float("nan"), tl.where(keeps_none, float("inf"), key_score(threshold)))
        tl.store(values + matrix, value, mask=finite)
        tl.store(cuts + matrix, tl.where(is_nan | keeps_none, 0, cut), mask=finite)
        if has_nan is not None:
            tl.store(has_nan + matrix, is_nan.to(tl.uint8))
        if reach is not None:
            moved = tl.abs(threshold.to(tl.int64) - tl.load(search + FIRST))
            crowded = tl.load(search + CANDIDATES) > tl.load(row + ROOM)
            tl.store(reach + matrix, _next_reach(tl.load(reach + matrix), moved, crowded), mask=finite)
