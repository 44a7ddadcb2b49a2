"""The exact top-k threshold of every matrix, decided on the device: no launch waits for the host.

Scores are ranked by integer keys of the same order (-0 and +0 equal, denormals not flushed), whose digits of
11, 11 and 10 bits are found one after another, each by a histogram of the entries that share those before it.
One launch per step serves all matrices.

Cold, the first histogram reads all scores; if the digit found holds at most 1/16 of the entries, a second read
compacts these, and the rest is next to free. Scores with many ties can have most entries in one digit: they are
read again for each digit, four times in all and once more for the ties, but never sorted or copied.

Warm, one read counts the entries above a window around the last threshold and those equal to it, and compacts
the others inside: while scores are learnt, the threshold moves little from step to step, or sits on a value
with millions of ties that are counted, not collected. A matrix whose threshold left the window, or whose window
held too many entries, goes the cold way, all by its own flag in the device's memory.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import TILE, TYPES, Table, aligned, alike, goes, launch, table, tiles_of, widen

WARPS = 8
BINS = 2048
COMPACTED = 16  # entries for each that there is room for when compacted
LEAST_ROOM = 1024
TILES_AT_ONCE = 1024  # whose ties are summed up; BERT's word embedding has 5,724

# Keys on either side of the last threshold that the warm window reaches: 3 to 6 % of its value, at φ = 0.01 six steps
# of a learning rate of 5e-5 or one of 3e-4. It decides how long a step takes, never its result.
REACH = tl.constexpr(1 << 18)

INFINITY = tl.constexpr(0x7F800000)  # as a key; that of no number is larger

# Columns of the table of matrices, one row each.
ADDRESS, SIZE, FIRST_TILE, TILES, FIRST_CANDIDATE, ROOM, KEEP, COLUMNS = (tl.constexpr(i) for i in range(8))

# Columns of the state of a search: the counts of the window, the key in its middle, the rank that is sought among the
# entries that share the digits found, these digits, and where those entries are.
ABOVE, AT_LAST, CANDIDATES, LAST, RANK, PREFIX, SOURCE, IS_NAN, STATE = (tl.constexpr(i) for i in range(9))
IN_SCORES, IN_WINDOW, IN_DIGIT = (tl.constexpr(i) for i in range(3))


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
def _compact(inside, key, start, room, first, count_pointer, keys, indices, TILE: tl.constexpr):
    """Append the keys inside and their flat indices to the candidates, as far as there is room."""
    count = tl.sum(inside.to(tl.int32))
    if count > 0:
        before = tl.atomic_add(count_pointer, count.to(tl.int64), sem="relaxed")
        position = before + tl.cumsum(inside.to(tl.int32), axis=0) - 1
        stored = inside & (position < room)
        tl.store(keys + first + position, key, mask=stored)
        tl.store(indices + first + position, (start + tl.arange(0, TILE)).to(tl.int32), mask=stored)


@triton.jit
def count_window(
    key, magnitude, tile, start, size, row, search, last, keys, indices, last_ties,
    ABSOLUTE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count what lies above the window and at the last threshold, compact what else lies inside."""
    valid = tl.arange(0, TILE) < size - start
    middle, _ = score_key(tl.load(last), ABSOLUTE)
    middle = tl.minimum(tl.maximum(middle, -INFINITY), INFINITY)  # it may be NaN: any window will do
    at_last = tl.sum((valid & (key == middle)).to(tl.int32))
    above = tl.sum((valid & (key > middle + REACH)).to(tl.int32))
    inside = valid & (key >= middle - REACH) & (key <= middle + REACH) & (key != middle)
    tl.atomic_add(search + ABOVE, above.to(tl.int64), sem="relaxed")
    tl.atomic_add(search + AT_LAST, at_last.to(tl.int64), sem="relaxed")
    tl.store(last_ties + tile, at_last)
    tl.store(search + LAST, middle.to(tl.int64))
    room, first = tl.load(row + ROOM), tl.load(row + FIRST_CANDIDATE)
    _compact(inside, key, start, room, first, search + CANDIDATES, keys, indices, TILE)
    if tl.max(tl.where(valid, magnitude, 0), axis=0) > INFINITY:
        tl.store(search + IS_NAN, tl.full((), 1, tl.int64))


@triton.jit
def window_kernel(
    tile_matrix, rows, state, last, keys, indices, last_ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile's part in the count of the window around the last threshold."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    size = tl.load(row + SIZE)
    start = (tile - tl.load(row + FIRST_TILE)) * TILE
    key, magnitude = _load_keys(row, start, size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
    count_window(
        key, magnitude, tile, start, size, row, search, last + matrix, keys, indices, last_ties, ABSOLUTE, TILE
    )


@triton.jit
def decide_kernel(rows, state):
    """Whether the window holds the threshold; if not, the search starts anew on the scores."""
    row, search = rows + tl.program_id(0) * COLUMNS, state + tl.program_id(0) * STATE
    above, candidates, keep = tl.load(search + ABOVE), tl.load(search + CANDIDATES), tl.load(row + KEEP)
    within = (above < keep) & (keep <= above + candidates + tl.load(search + AT_LAST))
    served = (keep == 0) | (within & (candidates <= tl.load(row + ROOM)))
    tl.store(search + SOURCE, tl.where(served, IN_WINDOW, IN_SCORES).to(tl.int64))
    tl.store(search + CANDIDATES, tl.where(served & (keep > 0), candidates, 0))


@triton.jit
def histogram_kernel(
    tile_matrix, rows, state, keys, histogram,
    DIGIT: tl.constexpr, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """Count each value of a digit among the entries that share the digits before it."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    source = tl.load(search + SOURCE)
    size = tl.load(row + SIZE)
    start = (tile - tl.load(row + FIRST_TILE)) * TILE
    lane = tl.arange(0, TILE)
    count = tl.where(source == IN_SCORES, size, tl.load(search + CANDIDATES))
    if start < count:
        valid = lane < count - start
        if source == IN_SCORES:
            key, magnitude = _load_keys(row, start, size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
            if DIGIT == 1:  # noqa: SIM102 - Triton folds this condition, but not one joined with the next
                if tl.max(magnitude, axis=0) > INFINITY:
                    tl.store(search + IS_NAN, tl.full((), 1, tl.int64))
        else:
            key = tl.load(keys + tl.load(row + FIRST_CANDIDATE) + start + lane, mask=valid, other=0)
        prefix = tl.load(search + PREFIX).to(tl.int32)
        if DIGIT == 1:
            digit = (key >> 21) + 1024
        elif DIGIT == 2:
            digit = (key >> 10) & 2047
            valid = valid & ((key >> 21) == prefix)
        else:
            digit = key & 1023
            valid = valid & ((key >> 10) == prefix)
        counted = tl.sum(valid.to(tl.int32))
        if counted > 0:
            bins = tl.arange(0, BINS)
            # The others count as zeros, and are taken away there.
            found = tl.histogram(tl.where(valid, digit, 0), BINS) - tl.where(bins == 0, TILE - counted, 0)
            tl.atomic_add(histogram + matrix * BINS + bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def select_kernel(rows, state, histogram, DIGIT: tl.constexpr, BINS: tl.constexpr):
    """The digit of the entry that is sought, and its rank among those that share it."""
    matrix = tl.program_id(0)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    source, prefix = tl.load(search + SOURCE), tl.load(search + PREFIX).to(tl.int32)
    last = tl.load(search + LAST).to(tl.int32)
    if DIGIT == 1:
        rank = tl.load(row + KEEP)
        if source == IN_WINDOW:
            rank -= tl.load(search + ABOVE)
        last_digit, shared = (last >> 21) + 1024, True
    elif DIGIT == 2:
        rank = tl.load(search + RANK)
        last_digit, shared = (last >> 10) & 2047, (last >> 21) == prefix
    else:
        rank = tl.load(search + RANK)
        last_digit, shared = last & 1023, (last >> 10) == prefix
    bins = tl.arange(0, BINS)
    counts = tl.load(histogram + matrix * BINS + bins)
    # Entries at the last threshold were counted, not collected.
    counts += tl.where((source == IN_WINDOW) & shared & (bins == last_digit), tl.load(search + AT_LAST), 0)
    at_least = tl.sum(counts) - tl.cumsum(counts, axis=0) + counts  # entries of this digit or a larger one
    digit = tl.maximum(tl.sum((at_least >= rank).to(tl.int32)) - 1, 0)
    count = tl.sum(tl.where(bins == digit, counts, 0))
    tl.store(search + RANK, rank - (tl.sum(tl.where(bins == digit, at_least, 0)) - count))
    if DIGIT == 1:
        prefix = digit - 1024
        if (source == IN_SCORES) & (count <= tl.load(row + ROOM)):
            tl.store(search + SOURCE, tl.full((), IN_DIGIT, tl.int64))
    elif DIGIT == 2:
        prefix = (prefix << 11) | digit
    else:
        prefix = (prefix << 10) | digit
    tl.store(search + PREFIX, prefix.to(tl.int64))


@triton.jit
def compact_kernel(
    tile_matrix, rows, state, keys, indices,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Collect the entries that share the first digit, where there is room for them."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    if tl.load(search + SOURCE) == IN_DIGIT:
        size = tl.load(row + SIZE)
        start = (tile - tl.load(row + FIRST_TILE)) * TILE
        key, _ = _load_keys(row, start, size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
        prefix = tl.load(search + PREFIX).to(tl.int32)
        inside = (tl.arange(0, TILE) < size - start) & ((key >> 21) == prefix)
        room, first = tl.load(row + ROOM), tl.load(row + FIRST_CANDIDATE)
        _compact(inside, key, start, room, first, search + CANDIDATES, keys, indices, TILE)


@triton.jit
def ties_kernel(
    tile_matrix, rows, state, keys, indices, ties,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count in each tile the entries equal to the threshold, of which all digits are known now."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    threshold = tl.load(search + PREFIX).to(tl.int32)
    first_tile = tl.load(row + FIRST_TILE)
    start = (tile - first_tile) * TILE
    lane = tl.arange(0, TILE)
    if tl.load(search + SOURCE) == IN_SCORES:
        size = tl.load(row + SIZE)
        key, _ = _load_keys(row, start, size, S_TYPE, ABSOLUTE, ALIGNED, TILE)
        tl.store(ties + tile, tl.sum(((lane < size - start) & (key == threshold)).to(tl.int32)))
    else:
        count = tl.load(search + CANDIDATES)
        if start < count:
            candidate = tl.load(row + FIRST_CANDIDATE) + start + lane
            valid = lane < count - start
            equal = valid & (tl.load(keys + candidate, mask=valid, other=0) == threshold)
            index = tl.load(indices + candidate, mask=equal, other=0)
            tl.atomic_add(ties + first_tile + index // TILE, 1, mask=equal, sem="relaxed")


@triton.jit
def locate_kernel(
    rows, state, ties, last_ties, values, cuts, has_nan, factor,
    S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the last tie that is kept: first its tile, by the ties in those before, then the entry."""
    matrix = tl.program_id(0)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    threshold, rank = tl.load(search + PREFIX).to(tl.int32), tl.load(search + RANK)
    first_tile, tiles, size = tl.load(row + FIRST_TILE), tl.load(row + TILES), tl.load(row + SIZE)
    counted = ties
    if (tl.load(search + SOURCE) == IN_WINDOW) & (tl.load(search + LAST) == threshold):
        counted = last_ties
    block = tl.arange(0, BLOCK)
    total = tl.full((), 0, tl.int64)
    tile = tl.full((), 0, tl.int64)
    before = tl.full((), 0, tl.int64)
    for first in range(0, tiles, BLOCK):
        valid = block < tiles - first
        position = first_tile + first + block
        counts = tl.load(counted + position, mask=valid, other=0)
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


class Search:
    """The memory of one search, and its launches: ``count`` for a warm one, then ``finish``.

    Another kernel may do what ``count`` does, for scores that it has in registers; ``counted`` are its arguments.
    """

    def __init__(self, scores: list[Tensor], keep: list[int], absolute: bool) -> None:
        device, count = scores[0].device, len(scores)
        sizes = [score.numel() for score in scores]
        rooms = [min(size, max(size // COMPACTED, LEAST_ROOM)) for size in sizes]

        def make() -> Table:
            tiles = [tiles_of(size, TILE) for size in sizes]
            rows = [
                (score.data_ptr(), size, sum(tiles[:i]), tiles[i], sum(rooms[:i]), rooms[i], keep[i])
                for i, (score, size) in enumerate(zip(scores, sizes, strict=True))
            ]
            return Table(rows, tiles, device)

        addresses = [each.data_ptr() for each in scores]
        matrices = table(("topk_threshold", device, TILE, COMPACTED, LEAST_ROOM, *addresses, *sizes, *keep), make)
        self.tile_matrix, self.rows = matrices.tile_matrix, matrices.rows
        self.matrices, self.tiles = (count,), (self.tile_matrix.numel(),)  # the grids of launches
        self.state = torch.zeros(count, STATE.value, dtype=torch.int64, device=device)
        self.histograms = torch.zeros(3, count, BINS, dtype=torch.int64, device=device)
        self.ties, self.last_ties = torch.zeros(2, *self.tiles, dtype=torch.int32, device=device)
        self.keys, self.indices = torch.empty(2, sum(rooms), dtype=torch.int32, device=device)
        self.how = {"S_TYPE": TYPES[scores[0].dtype], "ABSOLUTE": absolute, "ALIGNED": aligned(scores), "TILE": TILE}

    def counted(self, last: Tensor) -> tuple[Tensor, ...]:
        return self.tile_matrix, self.rows, self.state, last, self.keys, self.indices, self.last_ties

    def count(self, last: Tensor) -> None:
        launch(window_kernel, self.tiles, *self.counted(last), **self.how, num_warps=WARPS)

    def finish(
        self, warm: bool, values: Tensor, cuts: Tensor, has_nan: Tensor | None, factor: Tensor | None = None
    ) -> None:
        """Write the thresholds, unless ``factor`` says that no step is taken."""
        matrices, tiles = self.matrices, self.tiles
        rows, state, found = self.rows, self.state, (self.keys, self.indices)
        if warm:
            launch(decide_kernel, matrices, rows, state, num_warps=1)
        for digit in (1, 2, 3):
            histogram = self.histograms[digit - 1]
            launch(
                histogram_kernel, tiles, self.tile_matrix, rows, state, self.keys, histogram,
                DIGIT=digit, **self.how, BINS=BINS, num_warps=WARPS,
            )  # fmt: skip
            launch(select_kernel, matrices, rows, state, histogram, DIGIT=digit, BINS=BINS, num_warps=WARPS)
            if digit == 1:
                launch(compact_kernel, tiles, self.tile_matrix, rows, state, *found, **self.how, num_warps=WARPS)
        launch(ties_kernel, tiles, self.tile_matrix, rows, state, *found, self.ties, **self.how, num_warps=WARPS)
        launch(
            locate_kernel, matrices, rows, state, self.ties, self.last_ties, values, cuts, has_nan, factor,
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
    if last is not None:
        search.count(last.contiguous())
    search.finish(last is not None, values, cuts, has_nan.view(torch.uint8))
    return values, cuts, has_nan


def topk_threshold(scores: list[Tensor], keep: list[int], absolute: bool = False) -> tuple[Tensor, Tensor]:
    """The only wait for the device: whether a score is NaN, which is an error."""
    values, cuts, has_nan = topk_threshold_unchecked(scores, keep, None, absolute)
    for i, each in enumerate(has_nan.tolist()):
        if each:
            raise ValueError(f"topk_threshold: scores[{i}] has NaN entries; a score must be a number or infinite")
    return values, cuts
