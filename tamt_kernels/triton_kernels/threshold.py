"""The exact top-k threshold of every matrix, decided on the device: no launch waits for the host.

Scores are ranked by integer keys of the same order (-0 and +0 equal, denormals not flushed). A window of keys
that is to hold the threshold is known first; then one read of the scores counts the entries above it and those
equal to two keys in it, and compacts the others inside. Digits of 8 bits, of those in which the window's keys differ,
find the threshold among these few, each by a histogram of the entries that share the digits before it. One launch per
step serves all matrices.

Cold, the window lies between two order statistics of a sample, whose ties are those that are counted. Scores with
many ties, two values at first, so have them at an end of the window and not inside. Warm, it lies around the last
threshold, whose ties are counted: while scores are learnt, the threshold moves little from step to step, and how far
is remembered on the device.

A matrix whose window does not hold the threshold, or holds too many entries, is read again for each digit, and
once more for the ties, all by the counts in the device's memory; but it is never sorted or copied. That takes 2.5 ms if
it befalls all 73 matrices of BERT-base.

For the 108 million entries of BERT-base on an H200, where one read of them takes 0.117 ms, a search took 0.167 ms warm
and 0.40 cold (commit 2ea63e7). Of the latter 0.13 ms were four histograms of the 4.4 % of the entries that a sample's
window takes in, of which one or two are spared since; 0.04 the sample, 0.02 the ties. On an H100, where a read takes
0.160 ms, it took 0.217 warm and 0.497 cold (commit 49bcc26).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import (
    TILE,
    TYPES,
    Table,
    aligned,
    alike,
    goes,
    launch,
    matrix_of_each,
    pointer_at,
    table,
    tiles_of,
    widen,
)

# A program that reads all scores is one warp, so that none waits for another. It goes through its tile in parts, of
# which a thread has up to 32 entries: their scores in registers, and whether they lie in the window as bits of a word.
LANES = tl.constexpr(32)
VECTOR = tl.constexpr(4)  # entries side by side in a thread, 16 bytes in float32

WARPS = 8
COMPACTED = 16  # entries for each that there is room for when compacted
LEAST_ROOM = 1024
TILES_AT_ONCE = 1024  # whose ties are summed up; BERT's word embedding has 5,724

# Four standard deviations on either side of a sample's quantile take in 4.4 % of the entries at a sparsity of 50 %, and
# 4.1 % at 70 %, give or take 0.2: well within the room. Of 4,096 they would take in all of it, 6.3 %.
SAMPLES = 8192
SAMPLE_WARPS = 16

# A histogram of 256 values takes an H200 0.03 ms for 4.8 million candidates and 0.5 for all 108 million entries. One of
# 2,048 would take eight times as long, as each warp asks of each bin who is in it.
DIGITS = tl.constexpr(4)
BINS = tl.constexpr(256)
# Entries of a matrix for each program that looks through its candidates: 261 programs for BERT-base, which an H100 runs
# all at once.
SHARE = 1 << 19

TIES_REGISTERS = 136  # told no number, Triton spills on some GPUs, though it need not

# Keys on either side of the last threshold that the warm window reaches. It follows what the threshold moves, four
# times as far, and slowly back; a window with no room for all that is inside is narrowed at once. In 400 steps of AdamW
# on noise with a drift, as in benchmarks/scores.py, from the OMP mask at learning rates of 5e-5, with a warm-up too,
# and 3e-4, and of an embedding at 5e-5, three to eight of the first 50 steps had to read the scores again, and none
# later; with a fixed reach of 2^18 keys, 11 to 50, and up to 9 later. Then 0.4 % of the entries were inside at most.
REACH = 1 << 18  # of the first
LEAST_REACH, MOST_REACH = tl.constexpr(1 << 10), tl.constexpr(1 << 20)

INFINITY = tl.constexpr(0x7F800000)  # as a key; that of no number is larger
NO_KEY = tl.constexpr(0x7F800001)

# Columns of the table of matrices, one row each.
ADDRESS, SIZE, FIRST_TILE, TILES, FIRST_SHARE, SHARES, FIRST_CANDIDATE, ROOM, KEEP, HIGH_RANK, LOW_RANK, COLUMNS = (
    tl.constexpr(i) for i in range(12)
)

# Columns of the state of a search: the keys at the ends of the window and the two in it whose ties are counted; the
# counts; how many programs have counted ties, and of the candidates among these how many there are and the last one's
# index; then, for each digit, the rank that is sought among the entries that share the digits up to it, and these
# digits.
LOW, HIGH, FIRST, SECOND, ABOVE, AT_FIRST, AT_SECOND, CANDIDATES, IS_NAN, FINISHED, TIED, LAST = (
    tl.constexpr(i) for i in range(12)
)
RANK, PREFIX, STATE = tl.constexpr(16), tl.constexpr(24), tl.constexpr(32)


@triton.jit
def score_key(score, ABSOLUTE: tl.constexpr):
    """Integers in the order of the scores; above INFINITY or below its negative where the score is NaN."""
    bits = widen(score).to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if ABSOLUTE:
        return magnitude
    return tl.where(bits < 0, -magnitude, magnitude)


@triton.jit
def key_score(key):
    """The score of a key, -0 as +0."""
    return tl.where(key < 0, -key | -2147483648, key).to(tl.float32, bitcast=True)


@triton.jit
def _load_keys(row, start, size, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr,
               TILE: tl.constexpr):  # fmt: skip
    score = pointer_at(row + ADDRESS, S_TYPE, ALIGNED)
    lane = tl.arange(0, TILE)
    # Only without a condition are loads 16 bytes wide.
    if start + TILE <= size:
        loaded = tl.load(score + start + lane)
    else:
        loaded = tl.load(score + start + lane, mask=lane < size - start, other=0.0)
    return score_key(loaded, ABSOLUTE)


@triton.jit
def _of_a_number(key):
    """The key, or the nearest one that belongs to a number or an infinity."""
    return tl.minimum(tl.maximum(key, -INFINITY), INFINITY)


@triton.jit
def _open(search, histograms, low, high, first, second):
    """The state of a search at its beginning: its window and nothing counted."""
    low, high, first, second = _of_a_number(low), _of_a_number(high), _of_a_number(first), _of_a_number(second)
    second = tl.where(second == first, NO_KEY, second)
    column = tl.arange(0, STATE)
    ends = tl.where(column == LOW, low, tl.where(column == HIGH, high, 0))
    ties = tl.where(column == FIRST, first, tl.where(column == SECOND, second, 0))
    tl.store(search + column, (ends + ties).to(tl.int64))
    tl.store(histograms + tl.arange(0, DIGITS * BINS), tl.zeros((DIGITS * BINS,), tl.int64))


@triton.jit
def around_kernel(state, histograms, reach, last, ABSOLUTE: tl.constexpr):
    """A window around the last threshold, whose ties are counted."""
    matrix = tl.program_id(0)
    middle = _of_a_number(score_key(tl.load(last + matrix), ABSOLUTE))  # it may be NaN: any window will do
    far = tl.load(reach + matrix)
    histogram = histograms + matrix * (DIGITS * BINS)
    _open(state + matrix * STATE, histogram, middle - far, middle + far, middle, middle)


@triton.jit
def sample_kernel(rows, state, histograms, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, SAMPLES: tl.constexpr):
    """A window between two order statistics of a sample, whose ties are counted."""
    matrix = tl.program_id(0)
    row = rows + matrix * COLUMNS
    size = tl.load(row + SIZE)
    # One entry from each of equal parts of the matrix, so that no arrangement misleads the sample for good. Its place
    # in the matrix is a fraction of 31 bits: the part, and in it a hash of the part's number.
    part = tl.arange(0, SAMPLES)
    mixed = part.to(tl.uint32) * 0x9E3779B1
    mixed = (mixed ^ (mixed >> 15)) * 0x85EBCA6B
    fraction = (part.to(tl.int64) << 31) // SAMPLES + mixed.to(tl.int64) % ((1 << 31) // SAMPLES)
    position = (fraction * size) >> 31
    score = tl.load(row + ADDRESS).to(tl.pointer_type(S_TYPE))
    key = score_key(tl.load(score + position, mask=position < size, other=0.0), ABSOLUTE)
    # The largest keys that at least as many reach as the ranks say, bit by bit from the sign on: beyond the sample's
    # ends the smallest and the largest of all integers, which no score passes. Both counts are of one sum.
    high_rank, low_rank = tl.load(row + HIGH_RANK).to(tl.int32), tl.load(row + LOW_RANK).to(tl.int32)
    high, low = tl.full((), -2147483648, tl.int32), tl.full((), -2147483648, tl.int32)
    for i in range(32):
        bit = tl.full((), 1, tl.int32) << (31 - i)
        higher, lower = high ^ bit, low ^ bit
        counts = tl.sum((key >= higher).to(tl.int32) + ((key >= lower).to(tl.int32) << 16))
        high = tl.where((counts & 0xFFFF) >= high_rank, higher, high)
        low = tl.where((counts >> 16) >= low_rank, lower, low)
    _open(state + matrix * STATE, histograms + matrix * (DIGITS * BINS), low, high, high, low)


@triton.jit
def _of_each_thread(part, PART: tl.constexpr):
    """The sum of what each thread has of a part, whose entries lie as 16-byte loads give them to the threads."""
    return tl.sum(tl.sum(tl.reshape(part, (PART // (LANES * VECTOR), LANES, VECTOR)), axis=2), axis=0)


@triton.jit
def _ones(word):
    """How many bits of an unsigned word are ones."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def begin_count(row, search, keys, indices):
    """What the count of a tile needs to know: the scores of the window, and the room for candidates and where it is."""
    ends = key_score(tl.load(search + LOW).to(tl.int32)), key_score(tl.load(search + HIGH).to(tl.int32))
    tied = key_score(tl.load(search + FIRST).to(tl.int32)), key_score(tl.load(search + SECOND).to(tl.int32))
    candidate, room = tl.load(row + FIRST_CANDIDATE), tl.load(row + ROOM)
    return ends[0], ends[1], tied[0], tied[1], keys + candidate, indices + candidate, room


@triton.jit
def outside(value, start, end, low, high, ABSOLUTE: tl.constexpr, PART: tl.constexpr, WHOLE: tl.constexpr):
    """Of a part of a tile, the scores ``value``: how many each thread has above the window, and which neither above nor
    below, NaN too, as bits of a word.

    More than these two comparisons is asked of no entry outside, as nearly all are.
    """
    if ABSOLUTE:
        value = tl.abs(value)
    entry = tl.arange(0, PART)
    is_above = value > high
    inside = ((value < low) | is_above) == 0
    if not WHOLE:
        is_above, inside = is_above & (entry < end - start), inside & (entry < end - start)
    bit = tl.full((PART,), 1, tl.uint32) << (entry // (LANES * VECTOR) * VECTOR + entry % VECTOR)
    return _of_each_thread(is_above.to(tl.int32), PART), _of_each_thread(tl.where(inside, bit, 0), PART)


@triton.jit
def _next_inside(left, start, score, ABSOLUTE: tl.constexpr):
    """Of the entries of a part that each thread has inside the first one, if it has any: whether, its index, its score,
    and the others.
    """
    others = left & (left - 1)
    place = _ones((left ^ others) - 1)
    index = start + (place // VECTOR * LANES + tl.arange(0, LANES)) * VECTOR + place % VECTOR
    value = widen(tl.load(score + index, mask=left != 0, other=0.0))
    return left != 0, index, tl.abs(value) if ABSOLUTE else value, others


@triton.jit
def tell_apart(left, start, score, first, second, ABSOLUTE: tl.constexpr):
    """Of the entries inside those that are neither NaN nor tie with the window's first or second key; and how many each
    thread has of the others: of NaN, and, with two counts in a word, of ties.
    """
    is_nan, ties, rest = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32), left
    for _ in range(tl.max(_ones(left))):
        found, _index, value, others = _next_inside(rest, start, score, ABSOLUTE)
        nan_here = found & (value != value)
        at_first, at_second = found & (value == first), found & (value == second)
        is_nan += nan_here.to(tl.int32)
        ties += at_first.to(tl.int32) + (at_second.to(tl.int32) << 16)
        left = tl.where(nan_here | at_first | at_second, left ^ rest ^ others, left)
        rest = others
    return left, is_nan, ties


@triton.jit
def reserve(counts, search, room):
    """Where each thread's candidates go, of which it has ``counts``, and whether there is room for all."""
    count = tl.sum(counts)
    before = tl.atomic_add(search + CANDIDATES, count.to(tl.int64), sem="relaxed")
    return before + tl.cumsum(counts, axis=0) - counts, before + count <= room


@triton.jit
def compact(left, start, score, position, keys, indices, ABSOLUTE: tl.constexpr):
    """Write the candidates of a part from ``position`` on; return where the next ones go."""
    for _ in range(tl.max(_ones(left))):
        found, index, value, left = _next_inside(left, start, score, ABSOLUTE)
        tl.store(keys + position, score_key(value, False), mask=found)
        tl.store(indices + position, index.to(tl.int32), mask=found)
        position += found.to(tl.int64)
    return position


@triton.jit
def collect(left, start, score, search, first, second, keys, indices, room, ABSOLUTE: tl.constexpr):
    """All three of them, for one part; returns the counts of NaN and of ties."""
    left, is_nan, ties = tell_apart(left, start, score, first, second, ABSOLUTE)
    position, fits = reserve(_ones(left), search, room)
    if fits:
        compact(left, start, score, position, keys, indices, ABSOLUTE)
    return is_nan, ties


@triton.jit
def end_count(above, is_nan, ties, tile, search, tile_ties, window_ties):
    """Add what was counted of a tile, of NaN and of ties by each thread, to what was of its matrix."""
    is_nan, ties = tl.sum(is_nan), tl.sum(ties)
    tl.atomic_add(search + ABOVE, above.to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_FIRST, (ties & 0xFFFF).to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_SECOND, (ties >> 16).to(tl.int64), sem="relaxed")
    tl.store(window_ties + tile, ties)
    tl.store(tile_ties + tile, 0)
    if is_nan > 0:
        tl.store(search + IS_NAN, tl.full((), 1, tl.int64))


@triton.jit
def _whole(score, start, end, low, high, ABSOLUTE: tl.constexpr, PART: tl.constexpr):
    """`outside` of a part that is read."""
    value = widen(tl.load(score + start + tl.arange(0, PART)))
    return outside(value, start, end, low, high, ABSOLUTE, PART, True)


@triton.jit
def window_kernel(
    tile_matrix, rows, state, keys, indices, tile_ties, window_ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile's share in the count of the window."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    start = (tile - tl.load(row + FIRST_TILE)) * TILE
    end = tl.load(row + SIZE)
    score = pointer_at(row + ADDRESS, S_TYPE, ALIGNED)
    low, high, first, second, keys, indices, room = begin_count(row, search, keys, indices)
    if start + TILE <= end:
        # Four parts, of whose candidates a place is asked for at once: for those of each by themselves a warp waited
        # as long again as for its scores.
        PART: tl.constexpr = TILE // 4
        start_1, start_2, start_3 = start + PART, start + 2 * PART, start + 3 * PART
        # Each sum is taken at once: left for the end, it has the comparisons' outcomes kept in registers, 100 of them.
        above_0, left_0 = _whole(score, start, end, low, high, ABSOLUTE, PART)
        above = tl.sum(above_0)
        above_1, left_1 = _whole(score, start_1, end, low, high, ABSOLUTE, PART)
        above += tl.sum(above_1)
        above_2, left_2 = _whole(score, start_2, end, low, high, ABSOLUTE, PART)
        above += tl.sum(above_2)
        above_3, left_3 = _whole(score, start_3, end, low, high, ABSOLUTE, PART)
        above += tl.sum(above_3)
        left_0, nan_0, ties_0 = tell_apart(left_0, start, score, first, second, ABSOLUTE)
        left_1, nan_1, ties_1 = tell_apart(left_1, start_1, score, first, second, ABSOLUTE)
        left_2, nan_2, ties_2 = tell_apart(left_2, start_2, score, first, second, ABSOLUTE)
        left_3, nan_3, ties_3 = tell_apart(left_3, start_3, score, first, second, ABSOLUTE)
        position, fits = reserve(_ones(left_0) + _ones(left_1) + _ones(left_2) + _ones(left_3), search, room)
        if fits:
            position = compact(left_0, start, score, position, keys, indices, ABSOLUTE)
            position = compact(left_1, start_1, score, position, keys, indices, ABSOLUTE)
            position = compact(left_2, start_2, score, position, keys, indices, ABSOLUTE)
            compact(left_3, start_3, score, position, keys, indices, ABSOLUTE)
        is_nan = nan_0 + nan_1 + nan_2 + nan_3
        ties = ties_0 + ties_1 + ties_2 + ties_3
    else:
        above, is_nan, ties = tl.zeros((), tl.int32), tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
        entry = tl.arange(0, LANES * VECTOR)
        for begin in range(start, end, LANES * VECTOR):
            value = widen(tl.load(score + begin + entry, mask=entry < end - begin, other=0.0))
            part_above, left = outside(value, begin, end, low, high, ABSOLUTE, LANES * VECTOR, False)
            part_nan, part_ties = collect(left, begin, score, search, first, second, keys, indices, room, ABSOLUTE)
            above += tl.sum(part_above)
            is_nan += part_nan
            ties += part_ties
    end_count(above, is_nan, ties, tile, search, tile_ties, window_ties)


@triton.jit
def searched(row, search):
    """Whether the window holds the threshold and all of its entries; and how many these are, or else the scores."""
    above, candidates, keep = tl.load(search + ABOVE), tl.load(search + CANDIDATES), tl.load(row + KEEP)
    within = (above < keep) & (keep <= above + candidates + tl.load(search + AT_FIRST) + tl.load(search + AT_SECOND))
    served = (keep == 0) | (within & (candidates <= tl.load(row + ROOM)))
    return served, tl.where(served, tl.where(keep > 0, candidates, 0), tl.load(row + SIZE))


@triton.jit
def _load_searched(
    row, start, count, served, keys,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, TILE)
    if served:
        key = tl.load(keys + tl.load(row + FIRST_CANDIDATE) + start + lane, mask=lane < count - start, other=0)
    else:
        key = _load_keys(row, start, count, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    return key


@triton.jit
def _span(search, served):
    """The least key that is looked at, and in how many bits the others differ from it."""
    low, high = tl.load(search + LOW).to(tl.int32), tl.load(search + HIGH).to(tl.int32)
    low = tl.where(served, low, -2147483648)
    span = tl.where(served, high - low, -1).to(tl.uint32, bitcast=True)
    bits = tl.full((), 0, tl.int32)
    for i in tl.static_range(32):
        bits += ((span >> i) != 0).to(tl.int32)
    return low, bits


@triton.jit
def _bits_left(bits, DIGIT: tl.constexpr):
    """How many bits the digits up to one leave."""
    return tl.maximum(bits - 8 * DIGIT, 0)


@triton.jit
def _digit(key, low, bits, DIGIT: tl.constexpr):
    """The digits before one, and this one, of a key's distance from the least one. The first has the highest bits."""
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
    """The digits up to one, of the entry that is sought, and its rank among those that share them."""
    rank = tl.load(row + KEEP) - tl.where(served, tl.load(search + ABOVE), 0)
    prefix = tl.full((), 0, tl.int32)
    if DIGIT > 0:
        if DIGIT > 1:
            rank, prefix = tl.load(search + RANK + DIGIT - 1), tl.load(search + PREFIX + DIGIT - 1).to(tl.int32)
        bins = tl.arange(0, BINS)
        counts = tl.load(histograms + (DIGIT - 1) * BINS + bins)
        # The ties of two keys were counted, not collected.
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
    """Count each value of a digit among the entries that share the digits before it.

    Which these are each program finds for itself, from the histogram that the launch before has finished. Where keys do
    not differ in so many bits there is nothing to count.
    """
    matrix = tl.load(share_matrix + tl.program_id(0))
    row, search, histograms = rows + matrix * COLUMNS, state + matrix * STATE, histograms + matrix * (DIGITS * BINS)
    share, shares = tl.program_id(0) - tl.load(row + FIRST_SHARE), tl.load(row + SHARES)
    served, count = searched(row, search)
    low, bits = _span(search, served)
    rank, prefix = _select(row, search, histograms, served, low, bits, DIGIT - 1)
    count = tl.where(_bits_left(bits, DIGIT - 1) > 0, count, 0)
    if share == 0:
        tl.store(search + RANK + DIGIT - 1, rank)
        tl.store(search + PREFIX + DIGIT - 1, prefix.to(tl.int64))
    lane, bins = tl.arange(0, TILE), tl.arange(0, BINS)
    found = tl.zeros((BINS,), tl.int32)
    for start in range(share * TILE, count, shares * TILE):
        key = _load_searched(row, start, count, served, keys, S_TYPE, ABSOLUTE, ALIGNED, TILE)
        before, digit = _digit(key, low, bits, DIGIT)
        valid = (lane < count - start) & (before == prefix)
        # The others count as zeros, and are taken away there.
        others = TILE - tl.sum(valid.to(tl.int32))
        found += tl.histogram(tl.where(valid, digit, 0), BINS) - tl.where(bins == 0, others, 0)
    tl.atomic_add(histograms + (DIGIT - 1) * BINS + bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def _locate(
    row, search, threshold, rank, served, ties, window_ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Just behind the last tie that is kept: first its tile, by the ties in those before, then the entry."""
    first_tile, tiles, size = tl.load(row + FIRST_TILE), tl.load(row + TILES), tl.load(row + SIZE)
    at_first, at_second = tl.load(search + FIRST) == threshold, tl.load(search + SECOND) == threshold
    counted = ties
    if served & (at_first | at_second):
        counted = window_ties
    shift = tl.where(served & at_second, 16, 0)
    block = tl.arange(0, BLOCK)
    total = tl.full((), 0, tl.int64)
    tile = tl.full((), 0, tl.int64)
    before = tl.full((), 0, tl.int64)
    for first in range(0, tiles, BLOCK):
        valid = block < tiles - first
        counts = (tl.load(counted + first_tile + first + block, mask=valid, other=0) >> shift) & 0xFFFF
        upto = total + tl.cumsum(counts.to(tl.int64), axis=0)
        short = valid & (upto < rank)
        tile += tl.sum(short.to(tl.int64))
        before = tl.maximum(before, tl.max(tl.where(short, upto, 0), axis=0))
        total += tl.sum(counts.to(tl.int64))
    start = tile * TILE
    key = _load_keys(row, tl.minimum(start, size), size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    equal = (tl.arange(0, TILE) < size - start) & (key == threshold)
    upto = before + tl.cumsum(equal.to(tl.int32), axis=0)
    return start + tl.sum((upto < rank).to(tl.int32)) + 1


@triton.jit
def _next_reach(reach, moved, crowded):
    """How far the next window goes on either side of the threshold, which has ``moved`` from the last one."""
    wanted = tl.where(crowded, tl.maximum(reach // 4, moved + moved // 4), tl.maximum(reach - reach // 32, 4 * moved))
    return tl.minimum(tl.maximum(wanted, LEAST_REACH), MOST_REACH).to(tl.int32)


@triton.jit
def ties_kernel(
    share_matrix, rows, state, keys, indices, histograms, tile_ties, window_ties, reach, values, cuts, has_nan, factor,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count in each tile the entries equal to the threshold, of which all digits are known now.

    The program that is the last of its matrix to have counted finds the last tie that is kept.
    """
    matrix = tl.load(share_matrix + tl.program_id(0))
    row, search, histograms = rows + matrix * COLUMNS, state + matrix * STATE, histograms + matrix * (DIGITS * BINS)
    share, shares = tl.program_id(0) - tl.load(row + FIRST_SHARE), tl.load(row + SHARES)
    served, count = searched(row, search)
    low, bits = _span(search, served)
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
            key = _load_keys(row, start, count, S_TYPE, ABSOLUTE, ALIGNED, TILE)
            equal = (lane < count - start) & (key == threshold)
            tl.store(ties + start // TILE, tl.sum(equal.to(tl.int32)))
    # All threads have counted before one of them says so; what it then learns holds for all of them.
    tl.debug_barrier()
    if tl.atomic_add(search + FINISHED, tl.full((), 1, tl.int64), sem="acq_rel") == shares - 1:
        if served & (tl.load(search + TIED) == rank):  # all are kept, as a tie that has none is
            cut = tl.load(search + LAST) + 1
        else:
            cut = _locate(
                row, search, threshold, rank, served, tile_ties, window_ties, S_TYPE, ABSOLUTE, ALIGNED, TILE, BLOCK
            )  # fmt: skip
        nothing, is_nan, going = tl.load(row + KEEP) == 0, tl.load(search + IS_NAN) != 0, goes(factor)
        value = tl.where(is_nan, float("nan"), tl.where(nothing, float("inf"), key_score(threshold)))
        tl.store(values + matrix, value, mask=going)
        tl.store(cuts + matrix, tl.where(is_nan | nothing, 0, cut), mask=going)
        if has_nan is not None:
            tl.store(has_nan + matrix, is_nan.to(tl.uint8))
        if reach is not None:
            moved = tl.abs(threshold.to(tl.int64) - tl.load(search + FIRST))
            crowded = tl.load(search + CANDIDATES) > tl.load(row + ROOM)
            tl.store(reach + matrix, _next_reach(tl.load(reach + matrix), moved, crowded), mask=going)


def sample_ranks(size: int, keep: int) -> tuple[int, int]:
    """Ranks in a sample, from 1 on, between whose entries that of rank ``keep`` lies, but for once in ten thousand."""
    share = keep / size if size else 0.0
    reach = 4 * math.sqrt(SAMPLES * share * (1 - share)) + 4
    return math.floor(SAMPLES * share - reach) + 1, math.ceil(SAMPLES * share + reach) + 1


class Matrices(Table):
    """The table of a search, with a program for every share of what is looked through after the window.

    ``reach`` (int32, [M]) is how far on either side of the last threshold the window goes. Every warm search leaves it
    to the next of the same matrices: it decides how long that takes, never its result.
    """

    def __init__(self, scores: list[Tensor], keep: list[int], rooms: list[int]) -> None:
        device, sizes = scores[0].device, [score.numel() for score in scores]
        tiles = [tiles_of(size, TILE) for size in sizes]
        shares = [max(tiles_of(size, SHARE), 1) for size in sizes]
        rows = [
            (
                score.data_ptr(),
                size,
                sum(tiles[:i]),
                tiles[i],
                sum(shares[:i]),
                shares[i],
                sum(rooms[:i]),
                rooms[i],
                kept,
                *sample_ranks(size, kept),
            )
            for i, (score, size, kept) in enumerate(zip(scores, sizes, keep, strict=True))
        ]
        super().__init__(rows, tiles, device)
        self.share_matrix = matrix_of_each(shares, device)
        self.reach = torch.full((len(scores),), REACH, dtype=torch.int32, device=device)


class Search:
    """The memory of one search, and its launches: ``open`` gives the window, ``count`` reads it, ``finish`` finds.

    Another kernel may do what ``count`` does, for scores that it has in registers; ``counted`` are its arguments.
    """

    def __init__(self, scores: list[Tensor], keep: list[int], absolute: bool) -> None:
        device, count = scores[0].device, len(scores)
        sizes = [score.numel() for score in scores]
        rooms = [min(size, max(size // COMPACTED, LEAST_ROOM)) for size in sizes]
        choices = device, TILE, SHARE, COMPACTED, LEAST_ROOM, SAMPLES
        key = ("topk_threshold", *choices, *(each.data_ptr() for each in scores), *sizes, *keep)
        found = table(key, lambda: Matrices(scores, keep, rooms))
        self.rows, self.share_matrix, self.reach = found.rows, found.share_matrix, found.reach
        # The grids of launches: a program for each matrix, for each tile, and for each share in what is searched.
        self.matrices, self.tiles, self.shares = (count,), (found.tile_matrix.numel(),), (self.share_matrix.numel(),)
        # The first launch, which opens the search, or the one that counts clears what of it must be.
        self.state = torch.empty(count, STATE.value, dtype=torch.int64, device=device)
        self.histograms = torch.empty(count, DIGITS.value, BINS.value, dtype=torch.int64, device=device)
        self.ties, self.window_ties = torch.empty(2, *self.tiles, dtype=torch.int32, device=device)
        self.keys, self.indices = torch.empty(2, sum(rooms), dtype=torch.int32, device=device)
        self.counted = found.tile_matrix, self.rows, self.state, self.keys, self.indices, self.ties, self.window_ties
        self.type = {"S_TYPE": TYPES[scores[0].dtype], "ABSOLUTE": absolute}
        self.how = self.type | {"ALIGNED": aligned(scores), "TILE": TILE}
        self.warm = False

    def open(self, last: Tensor | None) -> None:
        self.warm = last is not None
        if last is None:
            launch(
                sample_kernel, self.matrices, self.rows, self.state, self.histograms,
                **self.type, SAMPLES=SAMPLES, num_warps=SAMPLE_WARPS,
            )  # fmt: skip
        else:
            launch(
                around_kernel, self.matrices, self.state, self.histograms, self.reach, last,
                ABSOLUTE=self.how["ABSOLUTE"], num_warps=WARPS,
            )  # fmt: skip

    def count(self) -> None:
        launch(window_kernel, self.tiles, *self.counted, **self.how, num_warps=1)

    def finish(self, values: Tensor, cuts: Tensor, has_nan: Tensor | None, factor: Tensor | None = None) -> None:
        """Write the thresholds, unless ``factor`` says that no step is taken."""
        searched = self.share_matrix, self.rows, self.state, self.keys
        for digit in range(1, DIGITS.value + 1):
            # By half tiles: of whole ones, Triton 3.6 takes 171 registers, and one program runs on a processor.
            launch(
                histogram_kernel, self.shares, *searched, self.histograms,
                DIGIT=digit, **self.how | {"TILE": TILE // 2}, num_warps=WARPS,
            )  # fmt: skip
        launch(
            ties_kernel, self.shares, *searched, self.indices, self.histograms, self.ties, self.window_ties,
            self.reach if self.warm else None, values, cuts, has_nan, factor,
            **self.how, BLOCK=TILES_AT_ONCE, num_warps=WARPS, maxnreg=TIES_REGISTERS,
        )  # fmt: skip


def topk_threshold_unchecked(
    scores: list[Tensor], keep: list[int], last: Tensor | None = None, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    count = len(scores)
    if not count:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
    device = scores[0].device
    values = torch.empty(count, dtype=torch.float32, device=device)
    cuts = torch.empty(count, dtype=torch.int64, device=device)
    has_nan = torch.empty(count, dtype=torch.bool, device=device)
    scores = alike(scores)
    search = Search(scores, keep, absolute)
    search.open(None if last is None else last.contiguous())
    search.count()
    search.finish(values, cuts, has_nan.view(torch.uint8))
    return values, cuts, has_nan


def topk_threshold(scores: list[Tensor], keep: list[int], absolute: bool = False) -> tuple[Tensor, Tensor]:
    """The only wait for the device: whether a score is NaN, which is an error."""
    values, cuts, has_nan = topk_threshold_unchecked(scores, keep, None, absolute)
    for i, each in enumerate(has_nan.tolist()):
        if each:
            raise ValueError(f"topk_threshold: scores[{i}] has NaN entries; a score must be a number or infinite")
    return values, cuts
