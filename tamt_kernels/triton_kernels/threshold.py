"""The exact top-k threshold of every matrix, found on the device: no launch waits for the host.

Example: 8 scores, of which 4 are kept.

    index   0    1    2    3    4    5    6    7
    score   0.5  0.1  0.9  0.5  0.3  0.5  0.8  0.2

1. Window. The last threshold was 0.4, and the window reaches from 0.25 to 0.55 (``around_kernel``).
2. Count. One read of the scores counts the 2 above the window (0.9, 0.8) and compacts the 4 inside with their indices
   (0.5 at 0, 0.5 at 3, 0.3 at 4, 0.5 at 5). So the threshold is the 2nd largest of these candidates
   (``window_kernel``).
3. Digits. The candidates' distances from the lower end are 25, 25, 5 and 25. The histogram of the first digit has 3
   entries at 2 and 1 entry at 0, so the threshold's first digit is 2 and it ranks 2nd among the 3 entries with a 2. The
   histogram of the second digit, among these, gives 5. The threshold is 0.25 + 0.25 = 0.5 (``histogram_kernel``).
4. Ties. Of the 3 entries equal to 0.5, 2 are kept. The second one has index 3 (``ties_kernel``).

Result: value 0.5 and cut 4. Kept are 0.9 and 0.8, and the entries equal to 0.5 before index 4.

The kernels rank scores by integer keys of the same order (``threshold_keys``), count a window (``threshold_window``)
and find 8-bit digits and ties among its candidates (``threshold_digits``). One launch per step serves all matrices.

Cold, the window lies between two order statistics of a sample; warm, around the last threshold, at a distance that is
kept on the device, because the threshold moves little from step to step. Scores may have millions of ties: two values
at first, later two humps. So ties with the ends of a cold window, or with the last threshold, are only counted and not
compacted.

If a window does not hold the threshold, or has too many candidates, all scores of that matrix are read again for each
digit and for the ties, which the kernels decide by the counts in the device's memory. This takes 2.5 ms if it happens
to all 73 matrices of BERT-base.

On an H200, where one read of BERT-base's 108 million scores takes 0.117 ms, a search took 0.167 ms warm and 0.40 ms
cold.
"""

import math

import torch
from torch import Tensor

from tamt_kernels.triton_kernels.common import (
    TILE,
    TYPES,
    Table,
    aligned,
    launch,
    matrix_numbers,
    same_type,
    table,
    tiles_of,
)
from tamt_kernels.triton_kernels.threshold_digits import histogram_kernel, ties_kernel
from tamt_kernels.triton_kernels.threshold_keys import BINS, DIGITS, STATE
from tamt_kernels.triton_kernels.threshold_window import around_kernel, sample_kernel, window_kernel

WARPS = 8
COMPACTED = 16  # a matrix has room for one candidate per 16 entries
MIN_ROOM = 1024
TILES_AT_ONCE = 1024  # tiles whose ties are summed at once; BERT's word embedding has 5,724

# Four standard deviations on either side of the sample's quantile take in 4.4 % of the entries at a sparsity of 50 %,
# and 4.1 % at 70 %, so the candidates fit into the room of 6.3 %. With 4,096 samples they would fill it.
SAMPLES = 8192
SAMPLE_WARPS = 16

# Entries of a matrix per program that searches candidates: 261 programs for BERT-base, which an H100 runs at the same
# time.
SHARE = 1 << 19

TIES_REGISTERS = 136  # without this number Triton spills on some GPUs

# Keys on either side of the last threshold in the first warm window. After that the reach follows the threshold's
# moves: it grows to four times a move at once and shrinks slowly, and a window with too many candidates is narrowed at
# once. In 400 steps of AdamW from an OMP mask, three to eight of the first 50 steps had to read all scores again, and
# none later; with this reach kept fixed, 11 to 50, and up to 9 later. At most 0.4 % of the entries were inside.
REACH = 1 << 18


def sample_ranks(size: int, keep: int) -> tuple[int, int]:
    """Ranks in a sample whose entries bound the ``keep``-th largest entry, except once in ten thousand times."""
    share = keep / size if size else 0.0
    reach = 4 * math.sqrt(SAMPLES * share * (1 - share)) + 4
    return math.floor(SAMPLES * share - reach) + 1, math.ceil(SAMPLES * share + reach) + 1


class Matrices(Table):
    """The table of a search. ``share_matrix`` is the matrix of each program that searches candidates.

    ``reach`` (int32, [M]) is how far a warm window reaches on either side of the last threshold. Each warm search
    updates it for the next one of the same matrices. It decides how long that search takes, never its result.
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
        self.share_matrix = matrix_numbers(shares, device)
        self.reach = torch.full((len(scores),), REACH, dtype=torch.int32, device=device)


class ThresholdSearch:
    """The memory and the launches of one search: ``open`` the window, ``count`` the scores, ``finish`` with the
    thresholds.

    Another kernel may do the work of ``count`` on scores that it has in registers; ``count_arguments`` are its
    arguments.
    """

    def __init__(self, scores: list[Tensor], keep: list[int], absolute: bool) -> None:
        device, count = scores[0].device, len(scores)
        sizes = [score.numel() for score in scores]
        rooms = [min(size, max(size // COMPACTED, MIN_ROOM)) for size in sizes]
        choices = device, TILE, SHARE, COMPACTED, MIN_ROOM, SAMPLES
        key = ("topk_threshold", *choices, *(score.data_ptr() for score in scores), *sizes, *keep)
        matrices = table(key, lambda: Matrices(scores, keep, rooms))
        self.rows, self.share_matrix, self.reach = matrices.rows, matrices.share_matrix, matrices.reach
        # The grids: one program per matrix, per tile, and per share of the candidates.
        self.matrices, self.tiles, self.shares = (count,), (matrices.tile_matrix.numel(),), (self.share_matrix.numel(),)
        # Uninitialised: the launches that open the window and count clear what must be cleared.
        self.state = torch.empty(count, STATE.value, dtype=torch.int64, device=device)
        self.histograms = torch.empty(count, DIGITS.value, BINS.value, dtype=torch.int64, device=device)
        self.ties, self.window_ties = torch.empty(2, *self.tiles, dtype=torch.int32, device=device)
        self.keys, self.indices = torch.empty(2, sum(rooms), dtype=torch.int32, device=device)
        self.count_arguments = (
            matrices.tile_matrix, self.rows, self.state, self.keys, self.indices, self.ties, self.window_ties
        )  # fmt: skip
        self.type = {"S_TYPE": TYPES[scores[0].dtype], "ABSOLUTE": absolute}
        self.options = self.type | {"ALIGNED": aligned(scores), "TILE": TILE}
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
                ABSOLUTE=self.options["ABSOLUTE"], num_warps=WARPS,
            )  # fmt: skip

    def count(self) -> None:
        launch(window_kernel, self.tiles, *self.count_arguments, **self.options, num_warps=1)

    def finish(self, values: Tensor, cuts: Tensor, has_nan: Tensor | None, factor: Tensor | None = None) -> None:
        """Write the thresholds, unless ``factor`` is not finite, which means that no step is taken."""
        searched = self.share_matrix, self.rows, self.state, self.keys
        for digit in range(1, DIGITS.value + 1):
            # By half tiles: with whole ones Triton 3.6 takes 171 registers, and a processor runs only one program.
            launch(
                histogram_kernel, self.shares, *searched, self.histograms,
                DIGIT=digit, **self.options | {"TILE": TILE // 2}, num_warps=WARPS,
            )  # fmt: skip
        launch(
            ties_kernel, self.shares, *searched, self.indices, self.histograms, self.ties, self.window_ties,
            self.reach if self.warm else None, values, cuts, has_nan, factor,
            **self.options, BLOCK=TILES_AT_ONCE, num_warps=WARPS, maxnreg=TIES_REGISTERS,
        )  # fmt: skip


def topk_threshold_unchecked(
    scores: list[Tensor], keep: list[int], last: Tensor | None = None, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    count, device = len(scores), scores[0].device
    values = torch.empty(count, dtype=torch.float32, device=device)
    cuts = torch.empty(count, dtype=torch.int64, device=device)
    has_nan = torch.empty(count, dtype=torch.bool, device=device)
    scores = same_type(scores)
    search = ThresholdSearch(scores, keep, absolute)
    search.open(None if last is None else last.contiguous())
    search.count()
    search.finish(values, cuts, has_nan.view(torch.uint8))
    return values, cuts, has_nan


def topk_threshold(scores: list[Tensor], keep: list[int], absolute: bool = False) -> tuple[Tensor, Tensor]:
    """Waits for the device only to learn whether a score is NaN, which is an error."""
    values, cuts, has_nan = topk_threshold_unchecked(scores, keep, None, absolute)
    for i, is_nan in enumerate(has_nan.tolist()):
        if is_nan:
            raise ValueError(f"topk_threshold: scores[{i}] has NaN entries; a score must be a number or infinite")
    return values, cuts
