"""The exact top-k threshold of every matrix, decided on the device: no launch waits for the host.

Scores are ranked by integer keys of the same order (-0 and +0 equal, denormals not flushed). A window of keys
that is to hold the threshold is known first; then one read of the scores counts the entries above it and those
equal to two keys in it, and compacts the others inside. Four digits of 8 bits find the threshold among these few,
each by a histogram of the entries that share the digits before it. One launch per step serves all matrices.

Cold, the window lies between two order statistics of a sample, whose ties are those that are counted. Scores with
many ties, two values at first, so have them at an end of the window and not inside. Warm, it lies around the last
threshold, whose ties are counted: while scores are learnt, the threshold moves little from step to step.

A matrix whose window does not hold the threshold, or holds too many entries, is read again for each digit, and
once more for the ties, all by the counts in the device's memory; but it is never sorted or copied.

On paper, for the 108 million entries of BERT-base on an H100: the sample takes 20 µs, reading the scores 150 to 170,
the digits, of at most 1/16 of the entries, and ten launches 60: half of what three reads and a third take.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import TILE, TYPES, Table, aligned, alike, goes, launch, table, tiles_of, widen

WARPS = 8
# Of a thread that counts the window, so that two programs run on a processor: left alone Triton 3.6 takes 184.
WINDOW_REGISTERS = 128
COMPACTED = 16  # entries for each that there is room for when compacted
LEAST_ROOM = 1024
TILES_AT_ONCE = 1024  # whose ties are summed up; BERT's word embedding has 5,724

# Four standard deviations on either side of a sample's quantile take in 4.4 % of the entries at a sparsity of 50 %, and
# 4.1 % at 70 %, give or take 0.2: well within the room. Of 4,096 they would take in all of it, 6.3 %.
SAMPLES = 8192
SAMPLE_WARPS = 16

# Histograms of 256 values count as fast as scores come from memory; those of 2,048 take eight times as long, on an H100
# 1.9 ms in place of 0.24 for 108 million entries, on paper: each warp asks of each bin who is in it.
DIGITS = (1, 2, 3, 4)
BINS = 256
# Programs for a matrix that look through its candidates: 4 tiles each of BERT's word embedding, and one at most of each
# layer. As many as the scores have tiles would take four times as long to start as they have to do.
PROGRAMS = 64

TIES_WARPS = 16  # of 8, those of sm_75 spill

# Keys on either side of the last threshold that the warm window reaches: 3 to 6 % of its value, at φ = 0.01 six steps
# of a learning rate of 5e-5 or one of 3e-4. It decides how long a step takes, never its result.
REACH = tl.constexpr(1 << 18)

INFINITY = tl.constexpr(0x7F800000)  # as a key; that of no number is larger

# Columns of the table of matrices, one row each.
ADDRESS, SIZE, FIRST_TILE, TILES, FIRST_CANDIDATE, ROOM, KEEP, HIGH_RANK, LOW_RANK, COLUMNS = (
    tl.constexpr(i) for i in range(10)
)

# Columns of the state of a search: the keys at the ends of the window and the two in it whose ties are counted; the
# counts; the rank that is sought among the entries that share the digits found, and these digits.
LOW, HIGH, FIRST, SECOND, ABOVE, AT_FIRST, AT_SECOND, CANDIDATES, RANK, PREFIX, IS_NAN, STATE = (
    tl.constexpr(i) for i in range(12)
)


@triton.jit
def score_key(score, ABSOLUTE: tl.constexpr):
    """Integers in the order of the scores, and their magnitudes, above INFINITY where the score is NaN."""
    bits = widen(score).to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if ABSOLUTE:
        return magnitude, magnitude
    return tl.where(bits < 0, -magnitude, magnitude), magnitude


@triton.jit
def _load_keys(row, start, size, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr,
               TILE: tl.constexpr):  # fmt: skip
    score = tl.load(row + ADDRESS).to(tl.pointer_type(S_TYPE))
    if ALIGNED:  # what the compiler cannot see of an address that it loads
        score = tl.multiple_of(score, 16)
    lane = tl.arange(0, TILE)
    # Only without a condition are loads 16 bytes wide.
    if start + TILE <= size:
        loaded = tl.load(score + start + lane)
    else:
        loaded = tl.load(score + start + lane, mask=lane < size - start, other=0.0)
    return score_key(loaded, ABSOLUTE)


@triton.jit
def _open(search, low, high, first, second):
    tl.store(search + LOW, low.to(tl.int64))
    tl.store(search + HIGH, high.to(tl.int64))
    tl.store(search + FIRST, first.to(tl.int64))
    tl.store(search + SECOND, second.to(tl.int64))


@triton.jit
def around_kernel(state, last, ABSOLUTE: tl.constexpr):
    """A window around the last threshold, whose ties are counted."""
    matrix = tl.program_id(0)
    middle, _ = score_key(tl.load(last + matrix), ABSOLUTE)
    middle = tl.minimum(tl.maximum(middle, -INFINITY), INFINITY)  # it may be NaN: any window will do
    _open(state + matrix * STATE, middle - REACH, middle + REACH, middle, middle)


@triton.jit
def sample_kernel(rows, state, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, SAMPLES: tl.constexpr):
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
    key, _ = score_key(tl.load(score + position, mask=position < size, other=0.0), ABSOLUTE)
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
    _open(state + matrix * STATE, low, high, high, low)


@triton.jit
def count_window(
    key, magnitude, tile, start, size, row, search, keys, indices, window_ties, TILE: tl.constexpr
):  # fmt: skip
    """Count what lies above the window and the ties with two keys in it, compact what else lies inside."""
    lane = tl.arange(0, TILE)
    valid = lane < size - start
    low, high = tl.load(search + LOW).to(tl.int32), tl.load(search + HIGH).to(tl.int32)
    first, second = tl.load(search + FIRST).to(tl.int32), tl.load(search + SECOND).to(tl.int32)
    above, at_first = valid & (key > high), valid & (key == first)
    at_second = valid & (key == second) & (second != first)
    inside = valid & (key >= low) & (key <= high) & (key != first) & (key != second)
    # Two counts of a tile are taken by one sum, as sums over a program's warps wait for each other.
    counts = tl.sum(above.to(tl.int32) + (inside.to(tl.int32) << 16))
    ties = tl.sum(at_first.to(tl.int32) + (at_second.to(tl.int32) << 16))
    tl.atomic_add(search + ABOVE, (counts & 0xFFFF).to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_FIRST, (ties & 0xFFFF).to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_SECOND, (ties >> 16).to(tl.int64), sem="relaxed")
    tl.store(window_ties + tile, ties)
    count = counts >> 16
    if count > 0:
        before = tl.atomic_add(search + CANDIDATES, count.to(tl.int64), sem="relaxed")
        room, candidate = tl.load(row + ROOM).to(tl.int32), tl.load(row + FIRST_CANDIDATE)
        position = tl.minimum(before, room).to(tl.int32) + tl.cumsum(inside.to(tl.int32), axis=0) - 1
        stored = inside & (position < room)
        tl.store(keys + candidate + position, key, mask=stored)
        tl.store(indices + candidate + position, start.to(tl.int32) + lane, mask=stored)
    if tl.max(tl.where(valid, magnitude, 0), axis=0) > INFINITY:
        tl.store(search + IS_NAN, tl.full((), 1, tl.int64))


@triton.jit
def window_kernel(
    tile_matrix, rows, state, keys, indices, window_ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile's part in the count of the window."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    size = tl.load(row + SIZE)
    start = (tile - tl.load(row + FIRST_TILE)) * TILE
    key, magnitude = _load_keys(row, start, size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    count_window(key, magnitude, tile, start, size, row, search, keys, indices, window_ties, TILE)


@triton.jit
def _searched(row, search):
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
        key, _ = _load_keys(row, start, count, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    return key


@triton.jit
def _digit(key, DIGIT: tl.constexpr):
    """The digits before one, and this one."""
    if DIGIT == 1:
        before, digit = key * 0, (key >> 24) + 128
    else:
        before, digit = key >> (40 - 8 * DIGIT), (key >> (32 - 8 * DIGIT)) & 255
    return before, digit


@triton.jit
def histogram_kernel(
    rows, state, keys, histogram,
    DIGIT: tl.constexpr, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """Count each value of a digit among the entries that share the digits before it."""
    matrix, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    served, count = _searched(row, search)
    prefix = tl.load(search + PREFIX).to(tl.int32)
    lane, bins = tl.arange(0, TILE), tl.arange(0, BINS)
    found = tl.zeros((BINS,), tl.int32)
    for start in range(program.to(tl.int64) * TILE, count, programs * TILE):
        key = _load_searched(row, start, count, served, keys, S_TYPE, ABSOLUTE, ALIGNED, TILE)
        before, digit = _digit(key, DIGIT)
        valid = (lane < count - start) & (before == prefix)
        # The others count as zeros, and are taken away there.
        others = TILE - tl.sum(valid.to(tl.int32))
        found += tl.histogram(tl.where(valid, digit, 0), BINS) - tl.where(bins == 0, others, 0)
    tl.atomic_add(histogram + matrix * BINS + bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def select_kernel(rows, state, histogram, DIGIT: tl.constexpr, BINS: tl.constexpr):
    """The digit of the entry that is sought, and its rank among those that share it."""
    matrix = tl.program_id(0)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    served, _ = _searched(row, search)
    prefix = tl.load(search + PREFIX).to(tl.int32)
    bins = tl.arange(0, BINS)
    counts = tl.load(histogram + matrix * BINS + bins)
    # The ties of two keys were counted, not collected.
    first, first_digit = _digit(tl.load(search + FIRST).to(tl.int32), DIGIT)
    second, second_digit = _digit(tl.load(search + SECOND).to(tl.int32), DIGIT)
    counts += tl.where(served & (first == prefix) & (bins == first_digit), tl.load(search + AT_FIRST), 0)
    counts += tl.where(served & (second == prefix) & (bins == second_digit), tl.load(search + AT_SECOND), 0)
    known = tl.load(row + KEEP) - tl.where(served, tl.load(search + ABOVE), 0)
    rank = known if DIGIT == 1 else tl.load(search + RANK)
    at_least = tl.sum(counts) - tl.cumsum(counts, axis=0) + counts  # entries of this digit or a larger one
    digit = tl.maximum(tl.sum((at_least >= rank).to(tl.int32)) - 1, 0)
    larger = tl.sum(tl.where(bins == digit, at_least - counts, 0))
    tl.store(search + RANK, rank - larger)
    prefix = digit - 128 if DIGIT == 1 else (prefix << 8) | digit
    tl.store(search + PREFIX, prefix.to(tl.int64))


@triton.jit
def ties_kernel(
    rows, state, keys, indices, ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count in each tile the entries equal to the threshold, of which all digits are known now."""
    matrix, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    served, count = _searched(row, search)
    threshold = tl.load(search + PREFIX).to(tl.int32)
    lane = tl.arange(0, TILE)
    first_tile = tl.load(row + FIRST_TILE)
    first, step = program.to(tl.int64) * TILE, programs * TILE
    if served:
        for start in range(first, count, step):
            candidate, valid = tl.load(row + FIRST_CANDIDATE) + start, lane < count - start
            equal = valid & (tl.load(keys + candidate + lane, mask=valid, other=0) == threshold)
            index = tl.load(indices + candidate + lane, mask=equal, other=0)
            tl.atomic_add(ties + first_tile + index // TILE, 1, mask=equal, sem="relaxed")
    else:
        for start in range(first, count, step):
            key, _ = _load_keys(row, start, count, S_TYPE, ABSOLUTE, ALIGNED, TILE)
            equal = (lane < count - start) & (key == threshold)
            tl.store(ties + first_tile + start // TILE, tl.sum(equal.to(tl.int32)))


@triton.jit
def locate_kernel(
    rows, state, ties, window_ties, values, cuts, has_nan, factor,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the last tie that is kept: first its tile, by the ties in those before, then the entry."""
    matrix = tl.program_id(0)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    threshold, rank = tl.load(search + PREFIX).to(tl.int32), tl.load(search + RANK)
    first_tile, tiles, size = tl.load(row + FIRST_TILE), tl.load(row + TILES), tl.load(row + SIZE)
    served, _ = _searched(row, search)
    at_first, at_second = tl.load(search + FIRST) == threshold, tl.load(search + SECOND) == threshold
    counted = ties
    if served & (at_first | at_second):
        counted = window_ties
    shift = tl.where(served & at_second & (at_first == 0), 16, 0)
    block = tl.arange(0, BLOCK)
    total = tl.full((), 0, tl.int64)
    tile = tl.full((), 0, tl.int64)
    before = tl.full((), 0, tl.int64)
    for first in range(0, tiles, BLOCK):
        valid = block < tiles - first
        position = first_tile + first + block
        counts = (tl.load(counted + position, mask=valid, other=0) >> shift) & 0xFFFF
        upto = total + tl.cumsum(counts.to(tl.int64), axis=0)
        short = valid & (upto < rank)
        tile += tl.sum(short.to(tl.int64))
        before = tl.maximum(before, tl.max(tl.where(short, upto, 0), axis=0))
        total += tl.sum(counts.to(tl.int64))
    start = tile * TILE
    key, _ = _load_keys(row, tl.minimum(start, size), size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    equal = (tl.arange(0, TILE) < size - start) & (key == threshold)
    upto = before + tl.cumsum(equal.to(tl.int32), axis=0)
    cut = start + tl.sum((upto < rank).to(tl.int32)) + 1
    bits = tl.where(threshold < 0, -threshold | -2147483648, threshold)
    value = bits.to(tl.float32, bitcast=True)
    nothing = tl.load(row + KEEP) == 0
    is_nan = tl.load(search + IS_NAN) != 0
    value = tl.where(is_nan, float("nan"), tl.where(nothing, float("inf"), value))
    going = goes(factor)
    tl.store(values + matrix, value, mask=going)
    tl.store(cuts + matrix, tl.where(is_nan | nothing, 0, cut), mask=going)
    if has_nan is not None:
        tl.store(has_nan + matrix, is_nan.to(tl.uint8))


def sample_ranks(size: int, keep: int) -> tuple[int, int]:
    """Ranks in a sample, from 1 on, between whose entries that of rank ``keep`` lies, but for once in ten thousand."""
    share = keep / size if size else 0.0
    reach = 4 * math.sqrt(SAMPLES * share * (1 - share)) + 4
    return math.floor(SAMPLES * share - reach) + 1, math.ceil(SAMPLES * share + reach) + 1


class Search:
    """The memory of one search, and its launches: ``open`` gives the window, ``count`` reads it, ``finish`` finds.

    Another kernel may do what ``count`` does, for scores that it has in registers; ``counted`` are its arguments.
    """

    def __init__(self, scores: list[Tensor], keep: list[int], absolute: bool) -> None:
        device, count = scores[0].device, len(scores)
        sizes = [score.numel() for score in scores]
        rooms = [min(size, max(size // COMPACTED, LEAST_ROOM)) for size in sizes]

        def make() -> Table:
            tiles = [tiles_of(size, TILE) for size in sizes]
            rows = [
                (
                    score.data_ptr(),
                    size,
                    sum(tiles[:i]),
                    tiles[i],
                    sum(rooms[:i]),
                    rooms[i],
                    kept,
                    *sample_ranks(size, kept),
                )
                for i, (score, size, kept) in enumerate(zip(scores, sizes, keep, strict=True))
            ]
            return Table(rows, tiles, device)

        addresses = [each.data_ptr() for each in scores]
        choices = device, TILE, COMPACTED, LEAST_ROOM, SAMPLES
        matrices = table(("topk_threshold", *choices, *addresses, *sizes, *keep), make)
        self.rows = matrices.rows
        # The grids of launches: a program for each matrix, for each tile, and for each share in what is searched.
        self.matrices, self.tiles, self.shares = (count,), (matrices.tile_matrix.numel(),), (count, PROGRAMS)
        self.state = torch.zeros(count, STATE.value, dtype=torch.int64, device=device)
        self.histograms = torch.zeros(len(DIGITS), count, BINS, dtype=torch.int64, device=device)
        self.ties, self.window_ties = torch.zeros(2, *self.tiles, dtype=torch.int32, device=device)
        self.keys, self.indices = torch.empty(2, sum(rooms), dtype=torch.int32, device=device)
        self.counted = matrices.tile_matrix, self.rows, self.state, self.keys, self.indices, self.window_ties
        self.type = {"S_TYPE": TYPES[scores[0].dtype], "ABSOLUTE": absolute}
        self.how = self.type | {"ALIGNED": aligned(scores), "TILE": TILE}

    def open(self, last: Tensor | None) -> None:
        if last is None:
            launch(
                sample_kernel, self.matrices, self.rows, self.state,
                **self.type, SAMPLES=SAMPLES, num_warps=SAMPLE_WARPS,
            )  # fmt: skip
        else:
            launch(around_kernel, self.matrices, self.state, last, ABSOLUTE=self.how["ABSOLUTE"], num_warps=1)

    def count(self) -> None:
        launch(window_kernel, self.tiles, *self.counted, **self.how, num_warps=WARPS, maxnreg=WINDOW_REGISTERS)

    def finish(self, values: Tensor, cuts: Tensor, has_nan: Tensor | None, factor: Tensor | None = None) -> None:
        """Write the thresholds, unless ``factor`` says that no step is taken."""
        rows, state = self.rows, self.state
        for digit, histogram in zip(DIGITS, self.histograms, strict=True):
            launch(
                histogram_kernel, self.shares, rows, state, self.keys, histogram,
                DIGIT=digit, **self.how, BINS=BINS, num_warps=WARPS,
            )  # fmt: skip
            launch(select_kernel, self.matrices, rows, state, histogram, DIGIT=digit, BINS=BINS, num_warps=WARPS)
        launch(
            ties_kernel, self.shares, rows, state, self.keys, self.indices, self.ties, **self.how, num_warps=TIES_WARPS
        )  # fmt: skip
        launch(
            locate_kernel, self.matrices, rows, state, self.ties, self.window_ties, values, cuts, has_nan, factor,
            **self.how, BLOCK=TILES_AT_ONCE, num_warps=WARPS,
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
