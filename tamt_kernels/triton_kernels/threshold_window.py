"""The window of a search: opened around the last threshold or by a sample, then counted in one read of the scores."""
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import triton
import triton.language as tl

from tamt_kernels.triton_kernels.common import pointer_at, widen
from tamt_kernels.triton_kernels.threshold_keys import (
    ABOVE,
    ADDRESS,
    AT_FIRST,
    AT_SECOND,
    BINS,
    CANDIDATES,
    COLUMNS,
    DIGITS,
    FIRST,
    FIRST_CANDIDATE,
    FIRST_TILE,
    HIGH,
    HIGH_RANK,
    IS_NAN,
    LOW,
    LOW_RANK,
    NO_KEY,
    ROOM,
    SECOND,
    SIZE,
    STATE,
    key_score,
    nearest_number,
    score_key,
)

# A program that reads all scores is one warp, so that no warp waits for another. It goes through its tile in parts, in
# each of which a thread has up to 32 entries: their scores are in registers, and the bits of a word say which are in
# the window.
LANES = tl.constexpr(32)
VECTOR = tl.constexpr(4)  # adjacent entries of a thread, 16 bytes in float32


@triton.jit
def _begin(search, histograms, low, high, first, second):
    """Write the state of a search at its beginning: the window, and nothing counted."""
    low, high, first, second = nearest_number(low), nearest_number(high), nearest_number(first), nearest_number(second)
    second = tl.where(second == first, NO_KEY, second)
    column = tl.arange(0, STATE)
    ends = tl.where(column == LOW, low, tl.where(column == HIGH, high, 0))
    ties = tl.where(column == FIRST, first, tl.where(column == SECOND, second, 0))
    tl.store(search + column, (ends + ties).to(tl.int64))
    tl.store(histograms + tl.arange(0, DIGITS * BINS), tl.zeros((DIGITS * BINS,), tl.int64))


@triton.jit
def around_kernel(state, histograms, reach, last, ABSOLUTE: tl.constexpr):
    """Open a window around the last threshold, whose ties are only counted."""
    matrix = tl.program_id(0)
    middle = nearest_number(score_key(tl.load(last + matrix), ABSOLUTE))  # any window will do if it is NaN
    far = tl.load(reach + matrix)
    histogram = histograms + matrix * (DIGITS * BINS)
    _begin(state + matrix * STATE, histogram, middle - far, middle + far, middle, middle)


@triton.jit
def sample_kernel(rows, state, histograms, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, SAMPLES: tl.constexpr):
    """Open a window between two order statistics of a sample, whose ties are only counted."""
    matrix = tl.program_id(0)
    row = rows + matrix * COLUMNS
    size = tl.load(row + SIZE)
    # One entry from each of equal parts of the matrix, so that no arrangement of scores always misleads the sample. Its
    # position is a fraction of 31 bits: the part, and within the part a hash of the part's number.
    part = tl.arange(0, SAMPLES)
    mixed = part.to(tl.uint32) * 0x9E3779B1
    mixed = (mixed ^ (mixed >> 15)) * 0x85EBCA6B
    fraction = (part.to(tl.int64) << 31) // SAMPLES + mixed.to(tl.int64) % ((1 << 31) // SAMPLES)
    position = (fraction * size) >> 31
    score = tl.load(row + ADDRESS).to(tl.pointer_type(S_TYPE))
    key = score_key(tl.load(score + position, mask=position < size, other=0.0), ABSOLUTE)
    # The largest keys that are reached by at least as many entries as the ranks say, found bit by bit from the sign on.
    # For ranks beyond the sample's ends they are the smallest or the largest integer, which no score passes. One sum
    # holds both counts.
    high_rank, low_rank = tl.load(row + HIGH_RANK).to(tl.int32), tl.load(row + LOW_RANK).to(tl.int32)
    high, low = tl.full((), -2147483648, tl.int32), tl.full((), -2147483648, tl.int32)
    for i in range(32):
        bit = tl.full((), 1, tl.int32) << (31 - i)
        higher, lower = high ^ bit, low ^ bit
        counts = tl.sum((key >= higher).to(tl.int32) + ((key >= lower).to(tl.int32) << 16))
        high = tl.where((counts & 0xFFFF) >= high_rank, higher, high)
        low = tl.where((counts >> 16) >= low_rank, lower, low)
    _begin(state + matrix * STATE, histograms + matrix * (DIGITS * BINS), low, high, high, low)


@triton.jit
def _sum_per_thread(part, PART: tl.constexpr):
    """The sum over each thread's entries of a part, which lie as 16-byte loads give them to the threads."""
    return tl.sum(tl.sum(tl.reshape(part, (PART // (LANES * VECTOR), LANES, VECTOR)), axis=2), axis=0)


@triton.jit
def _count_ones(word):
    """The number of ones among the bits of an unsigned word."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def begin_count(row, search, keys, indices):
    """Load what the count of a tile needs: the scores that bound the window, and the memory for its candidates."""
    ends = key_score(tl.load(search + LOW).to(tl.int32)), key_score(tl.load(search + HIGH).to(tl.int32))
    tied = key_score(tl.load(search + FIRST).to(tl.int32)), key_score(tl.load(search + SECOND).to(tl.int32))
    candidate, room = tl.load(row + FIRST_CANDIDATE), tl.load(row + ROOM)
    return ends[0], ends[1], tied[0], tied[1], keys + candidate, indices + candidate, room


@triton.jit
def split_part(value, start, end, low, high, ABSOLUTE: tl.constexpr, PART: tl.constexpr, WHOLE: tl.constexpr):
    """Compare a part of a tile, the scores ``value``, with the window.

    Returns for each thread the number of its entries above the window, and a word with a bit for each entry that is
    neither above nor below, NaN included. No entry outside takes more than these two comparisons, and nearly all are
    outside.
    """
    if ABSOLUTE:
        value = tl.abs(value)
    entry = tl.arange(0, PART)
    is_above = value > high
    inside = ((value < low) | is_above) == 0
    if not WHOLE:
        is_above, inside = is_above & (entry < end - start), inside & (entry < end - start)
    bit = tl.full((PART,), 1, tl.uint32) << (entry // (LANES * VECTOR) * VECTOR + entry % VECTOR)
    return _sum_per_thread(is_above.to(tl.int32), PART), _sum_per_thread(tl.where(inside, bit, 0), PART)


@triton.jit
def _next_inside(left, start, score, ABSOLUTE: tl.constexpr):
    """The first entry of each thread whose bit is set in ``left``: whether there is one, its index, its score, and the
    word without it.
    """
    others = left & (left - 1)
    bit = _count_ones((left ^ others) - 1)
    index = start + (bit // VECTOR * LANES + tl.arange(0, LANES)) * VECTOR + bit % VECTOR
    value = widen(tl.load(score + index, mask=left != 0, other=0.0))
    return left != 0, index, tl.abs(value) if ABSOLUTE else value, others


@triton.jit
def _take_ties(left, start, score, first, second, ABSOLUTE: tl.constexpr):
    """Take NaN, and ties with the window's first or second key, out of the entries inside.

    Returns the words of the entries that are left, the number of NaN in each thread, and its number of ties, with the
    two counts in one word.
    """
    is_nan, ties, rest = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32), left
    for _ in range(tl.max(_count_ones(left))):
        exists, _index, value, others = _next_inside(rest, start, score, ABSOLUTE)
        nan_here = exists & (value != value)
        at_first, at_second = exists & (value == first), exists & (value == second)
        is_nan += nan_here.to(tl.int32)
        ties += at_first.to(tl.int32) + (at_second.to(tl.int32) << 16)
        left = tl.where(nan_here | at_first | at_second, left ^ rest ^ others, left)
        rest = others
    return left, is_nan, ties


@triton.jit
def _reserve(counts, search, room):
    """Where each thread may write its ``counts`` candidates, and whether there is room for all."""
    count = tl.sum(counts)
    before = tl.atomic_add(search + CANDIDATES, count.to(tl.int64), sem="relaxed")
    return before + tl.cumsum(counts, axis=0) - counts, before + count <= room


@triton.jit
def _compact(left, start, score, position, keys, indices, ABSOLUTE: tl.constexpr):
    """Write the candidates of a part from ``position`` on; return the position after them."""
    for _ in range(tl.max(_count_ones(left))):
        exists, index, value, left = _next_inside(left, start, score, ABSOLUTE)
        tl.store(keys + position, score_key(value, False), mask=exists)
        tl.store(indices + position, index.to(tl.int32), mask=exists)
        position += exists.to(tl.int64)
    return position


@triton.jit
def collect(left, start, score, search, first, second, keys, indices, room, ABSOLUTE: tl.constexpr):
    """Count NaN and ties of one part, and write its candidates. Returns the counts of NaN and of ties."""
    left, is_nan, ties = _take_ties(left, start, score, first, second, ABSOLUTE)
    position, fits = _reserve(_count_ones(left), search, room)
    if fits:
        _compact(left, start, score, position, keys, indices, ABSOLUTE)
    return is_nan, ties


@triton.jit
def end_count(above, is_nan, ties, tile, search, tile_ties, window_ties):
    """Add the counts of a tile to those of its matrix; NaN and ties were counted by each thread."""
    is_nan, ties = tl.sum(is_nan), tl.sum(ties)
    tl.atomic_add(search + ABOVE, above.to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_FIRST, (ties & 0xFFFF).to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_SECOND, (ties >> 16).to(tl.int64), sem="relaxed")
    tl.store(window_ties + tile, ties)
    tl.store(tile_ties + tile, 0)
    if is_nan > 0:
        tl.store(search + IS_NAN, tl.full((), 1, tl.int64))


@triton.jit
def _read_part(score, start, end, low, high, ABSOLUTE: tl.constexpr, PART: tl.constexpr):
    """Read a whole part, and compare it with the window."""
    value = widen(tl.load(score + start + tl.arange(0, PART)))
    return split_part(value, start, end, low, high, ABSOLUTE, PART, True)


@triton.jit
def window_kernel(
    tile_matrix, rows, state, keys, indices, tile_ties, window_ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count a tile: entries above the window and ties in it; and collect the other entries inside."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    start = (tile - tl.load(row + FIRST_TILE)) * TILE
    end = tl.load(row + SIZE)
    score = pointer_at(row + ADDRESS, S_TYPE, ALIGNED)
    low, high, first, second, keys, indices, room = begin_count(row, search, keys, indices)
    if start + TILE <= end:
        # Room for the candidates of all parts is reserved at once: with a reservation per part, a warp waited twice as
        # long.
        PART: tl.constexpr = TILE // 4
        starts = (start, start + PART, start + 2 * PART, start + 3 * PART)
        above, inside, nans, tied = 0, (), (), ()
        for i in tl.static_range(4):
            part_above, part_inside = _read_part(score, starts[i], end, low, high, ABSOLUTE, PART)
            # Summed at once: if it were left for the end, 100 registers would hold the results of the comparisons.
            above += tl.sum(part_above)
            inside = inside + (part_inside,)  # noqa: RUF005 (Triton has no stars)
        candidates = ()
        for i in tl.static_range(4):
            left, part_nan, part_ties = _take_ties(inside[i], starts[i], score, first, second, ABSOLUTE)
            candidates, nans, tied = candidates + (left,), nans + (part_nan,), tied + (part_ties,)  # noqa: RUF005
        counts = 0
        for i in tl.static_range(4):
            counts += _count_ones(candidates[i])
        position, fits = _reserve(counts, search, room)
        if fits:
            for i in tl.static_range(4):
                position = _compact(candidates[i], starts[i], score, position, keys, indices, ABSOLUTE)
        is_nan = nans[0] + nans[1] + nans[2] + nans[3]
        ties = tied[0] + tied[1] + tied[2] + tied[3]
    else:
        above, is_nan, ties = tl.zeros((), tl.int32), tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
        entry = tl.arange(0, LANES * VECTOR)
        for begin in range(start, end, LANES * VECTOR):
            value = widen(tl.load(score + begin + entry, mask=entry < end - begin, other=0.0))
            part_above, left = split_part(value, begin, end, low, high, ABSOLUTE, LANES * VECTOR, False)
            part_nan, part_ties = collect(left, begin, score, search, first, second, keys, indices, room, ABSOLUTE)
            above += tl.sum(part_above)
            is_nan += part_nan
            ties += part_ties
    end_count(above, is_nan, ties, tile, search, tile_ties, window_ties)
