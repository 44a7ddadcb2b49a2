"""The step of ``MaskAdamW`` for masks of a pattern: one launch updates every score and masks the weights.

A group's mask follows from its own scores, so it is known as soon as they are updated: there is no threshold to search
for, and nothing is masked again. Per entry the pass moves the bytes of ``mask_adamw``: 32 in float32, and W ⊙ m.
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
    launch,
    pointer_at,
    read,
    rounded,
    same_type,
    table,
    tiles_of,
    write,
)
from tamt_kernels.triton_kernels.pattern import among_largest, rank_of

# Parts per program, which is one warp.
PARTS = 32

# Columns of the table of the matrices. The address of masked weights that are not to be written is NOT_WRITTEN;
# OVERWRITTEN is 1 where they hold their gradient.
WEIGHT, SCORE, MEAN, SQUARE, MASKED, OVERWRITTEN, SIZE, FIRST_TILE, COLUMNS = (tl.constexpr(i) for i in range(9))
NOT_WRITTEN = tl.constexpr(0)


@triton.jit
def pattern_adamw_kernel(
    tile_matrix, rows, gradients, rates, new_mean, old_square, new_square, eps,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, MASKED_TYPE: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Update the scores of a tile, a part of whole groups at a time, and mask its weights.

    If the step is not taken, weights are masked only where gradients have overwritten them.
    """
    LENGTH: tl.constexpr = PART // M * M
    matrix = tl.load(tile_matrix + tl.program_id(0))
    row = rows + matrix * COLUMNS
    size, address, taken = tl.load(row + SIZE), tl.load(row + MASKED), is_finite(rates)
    begin = (tl.program_id(0) - tl.load(row + FIRST_TILE)) * (PARTS * LENGTH)
    end = tl.minimum(begin + PARTS * LENGTH, size)
    factor, step_size, root, decay = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2), tl.load(rates + 3)
    grad, weight = pointer_at(gradients + matrix, G_TYPE, ALIGNED), pointer_at(row + WEIGHT, W_TYPE, ALIGNED)
    score, mean = pointer_at(row + SCORE, tl.float32, ALIGNED), pointer_at(row + MEAN, tl.float32, ALIGNED)
    square, masked = pointer_at(row + SQUARE, tl.float32, ALIGNED), pointer_at(row + MASKED, MASKED_TYPE, ALIGNED)
    lane = tl.arange(0, PART)
    if taken:
        for start in range(begin, end, LENGTH):
            entry = start + lane
            inside = (lane < LENGTH) & (entry < size)
            if (LENGTH == PART) & (start + PART <= end):
                w, new = update(
                    grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                    factor, step_size, root, decay, new_mean, old_square, new_square, eps, True,
                )  # fmt: skip
            else:
                w, new = update(
                    grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                    factor, step_size, root, decay, new_mean, old_square, new_square, eps, False,
                )  # fmt: skip
            if address != NOT_WRITTEN:
                # The new scores of neighbours are read, and masked weights may lie where gradients do.
                tl.debug_barrier()
                rank = rank_of(new, ABSOLUTE)
                kept = among_largest(score + start, lane, rank, inside, N, M, ABSOLUTE)
                result = rounded(tl.where(kept, w, 0.0), MASKED_TYPE)
                if (LENGTH == PART) & (start + PART <= end):
                    write(masked + entry, result, inside, True)
                else:
                    write(masked + entry, result, inside, False)
    elif tl.load(row + OVERWRITTEN) != 0:
        for start in range(begin, end, LENGTH):
            entry = start + lane
            inside = (lane < LENGTH) & (entry < size)
            rank = rank_of(tl.load(score + entry, mask=inside, other=0.0), ABSOLUTE)
            kept = among_largest(score + start, lane, rank, inside, N, M, ABSOLUTE)
            result = rounded(tl.where(kept, read(weight + entry, inside, False), 0.0), MASKED_TYPE)
            write(masked + entry, result, inside, False)


def pattern_adamw(
    grads: list[Tensor],
    weights: list[Tensor],
    scores: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masked: list[Tensor],
    n: int,
    m: int,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    absolute: bool = False,
    grad_rows: list[Tensor] | None = None,
) -> None:
    check_contiguous("pattern_adamw", scores=scores, means=means, squares=squares, masked=masked)
    if grad_rows is not None:
        grads = [whole_gradient(*parts) for parts in zip(grads, weights, grad_rows, strict=True)]
    masked_type, pairs = written_type("pattern_adamw", masked), zip(grads, masked, strict=True)
    overwritten = [int(grad.numel() > 0 and grad.data_ptr() == target.data_ptr()) for grad, target in pairs]
    grads, weights = same_type(grads), same_type(weights)
    matrices = _matrices(weights, scores, means, squares, masked, overwritten, PART // m * m * PARTS)
    launch(
        pattern_adamw_kernel, (matrices.tile_matrix.numel(),), matrices.tile_matrix, matrices.rows, addresses(grads),
        rates, 1 - beta1, beta2, 1 - beta2, eps,
        G_TYPE=TYPES[grads[0].dtype], W_TYPE=TYPES[weights[0].dtype], MASKED_TYPE=TYPES[masked_type], N=n, M=m,
        ABSOLUTE=absolute, ALIGNED=aligned((*grads, *weights, *scores, *means, *squares, *masked)),
        PARTS=PARTS, PART=PART, num_warps=1,
    )  # fmt: skip


def _matrices(
    weights: list[Tensor],
    scores: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masked: list[Tensor],
    overwritten: list[int],
    length: int,
) -> Table:
    """The table of the matrices, with the columns above; a program handles ``length`` entries."""
    device, sizes = scores[0].device, [score.numel() for score in scores]
    written = [target.data_ptr() if target.numel() else NOT_WRITTEN.value for target in masked]
    pointers = [[tensor.data_ptr() for tensor in tensors] for tensors in (weights, scores, means, squares)]

    def make() -> Table:
        tiles = [tiles_of(size, length) for size in sizes]
        first = [sum(tiles[:i]) for i in range(len(tiles))]
        return Table(list(zip(*pointers, written, overwritten, sizes, first, strict=True)), tiles, device)

    columns = (*pointers, written, overwritten, sizes)
    return table(("pattern_adamw", device, length, *(entry for column in columns for entry in column)), make)
