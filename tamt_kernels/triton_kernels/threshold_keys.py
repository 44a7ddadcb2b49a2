"""The integer keys by which scores are ranked, and the memory of a search in which kernels work on them."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import triton
import triton.language as tl

from tamt_kernels.triton_kernels.common import pointer_at, widen

INFINITY = tl.constexpr(0x7F800000)  # as a key; no number has a larger one
NO_KEY = tl.constexpr(0x7F800001)

# Columns of the table of matrices.
ADDRESS, SIZE, FIRST_TILE, TILES, FIRST_SHARE, SHARES, FIRST_CANDIDATE, ROOM, KEEP, HIGH_RANK, LOW_RANK, COLUMNS = (
    tl.constexpr(i) for i in range(12)
)

# Columns of the state of a search, one row per matrix:
# - LOW, HIGH: the keys at the ends of the window; FIRST, SECOND: the two keys in it whose ties are only counted;
# - ABOVE, AT_FIRST, AT_SECOND, CANDIDATES: numbers of entries above the window, equal to these two keys, and otherwise
#   inside; IS_NAN: whether an entry is NaN;
# - FINISHED: programs that have counted ties; TIED, LAST: ties among the candidates, and the index of the last one;
# - RANK + i, PREFIX + i: the rank of the threshold among the entries that share its first i digits, and these digits.
LOW, HIGH, FIRST, SECOND, ABOVE, AT_FIRST, AT_SECOND, CANDIDATES, IS_NAN, FINISHED, TIED, LAST = (
    tl.constexpr(i) for i in range(12)
)
RANK, PREFIX, STATE = tl.constexpr(16), tl.constexpr(24), tl.constexpr(32)

# Each of four digits of 8 bits has a histogram. On an H200 it takes 0.03 ms for 4.8 million candidates. A histogram of
# 2,048 bins would take eight times as long, as each warp compares every entry with every bin.
DIGITS = tl.constexpr(4)
BINS = tl.constexpr(256)


@triton.jit
def score_key(score, ABSOLUTE: tl.constexpr):
    """Integers in the order of the scores; above INFINITY, or below its negative, where the score is NaN."""
    bits = widen(score).to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if ABSOLUTE:
        return magnitude
    return tl.where(bits < 0, -magnitude, magnitude)


@triton.jit
def key_score(key):
    """The score of a key, +0 for both zeros."""
    return tl.where(key < 0, -key | -2147483648, key).to(tl.float32, bitcast=True)


@triton.jit
def load_keys(
    row, start, size, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The keys of a tile of a matrix."""
    score = pointer_at(row + ADDRESS, S_TYPE, ALIGNED)
    lane = tl.arange(0, TILE)
    # Loads are 16 bytes wide only without a condition.
    if start + TILE <= size:
        loaded = tl.load(score + start + lane)
    else:
        loaded = tl.load(score + start + lane, mask=lane < size - start, other=0.0)
    return score_key(loaded, ABSOLUTE)


@triton.jit
def nearest_number(key):
    """The key, or the nearest key of a number or an infinity."""
    return tl.minimum(tl.maximum(key, -INFINITY), INFINITY)
