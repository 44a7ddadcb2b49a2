"""The step of ``MaskAdamW``: one launch updates every score and counts it for the thresholds while it is in registers.

A step of many matrices is as many launches as one of few. Per entry the update reads d(W ⊙ m), W, S and both
moments and writes the last three, 32 bytes in float32; the masked weights take 10 more to 16 bits. Whether a
step is taken at all is asked on the device.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.reference import whole_gradient
from tamt_kernels.triton_kernels.common import (
    TILE,
    TYPES,
    Table,
    addresses,
    aligned,
    alike,
    goes,
    launch,
    table,
    tiles_of,
    widen,
)
from tamt_kernels.triton_kernels.mask_weights import write_masked
from tamt_kernels.triton_kernels.threshold import (
    ADDRESS,
    COLUMNS,
    FIRST_TILE,
    LANES,
    SIZE,
    STATE,
    Search,
    begin_count,
    count_part,
    end_count,
)

WARPS = 8
# Entries of a warp at once, eight a thread: of five tensors and with the count of the window.
PART = 256


@triton.jit
def _read(pointer, inside, WHOLE: tl.constexpr):
    """A tile in float32. Only without a condition are loads 16 bytes wide."""
    if WHOLE:
        return widen(tl.load(pointer))
    return widen(tl.load(pointer, mask=inside, other=0.0))


@triton.jit
def _write(pointer, value, inside, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=inside)


@triton.jit
def _address(pointer, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    found = tl.load(pointer).to(tl.pointer_type(TYPE))
    if ALIGNED:  # what the compiler cannot see of an address that it loads
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def norm_kernel(
    tile_matrix, rows, gradients, sums,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The sum of the squares of a tile's d(W ⊙ m) ⊙ W."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row = rows + matrix * 3
    size = tl.load(row + 1)
    start = (tile - tl.load(row + 2)) * TILE
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    grad = _address(gradients + matrix, G_TYPE, ALIGNED) + start + lane
    weight = _address(row, W_TYPE, ALIGNED) + start + lane
    if start + TILE <= size:
        product = _read(grad, inside, True) * _read(weight, inside, True)
    else:
        product = _read(grad, inside, False) * _read(weight, inside, False)
    wide = product.to(tl.float64)
    tl.store(sums + tile, tl.sum(wide * wide))


@triton.jit
def _update(
    grad, weight, score, mean, square, inside, rates, new_mean, old_square, new_square, eps, WHOLE: tl.constexpr
):  # fmt: skip
    """AdamW in the order, and with the roundings, of the definition; returns the new score.

    The square root is rounded right, which torch's on a CPU, MKL's, is not for seven entries in a thousand.
    """
    factor, step_size, root, left = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2), tl.load(rates + 3)
    gradient = _read(grad, inside, WHOLE) * _read(weight, inside, WHOLE) * factor
    m, v = _read(mean, inside, WHOLE), _read(square, inside, WHOLE)
    # torch interpolates from the nearer end.
    near = new_mean < 0.5
    m = tl.fma(tl.where(near, new_mean, new_mean - 1.0), gradient - m, tl.where(near, m, gradient))
    v = tl.fma(new_square * gradient, gradient, old_square * v)
    _write(mean, m, inside, WHOLE)
    _write(square, v, inside, WHOLE)
    s = _read(score, inside, WHOLE) * left + tl.div_rn(-step_size * m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    _write(score, s, inside, WHOLE)
    return s


@triton.jit
def adamw_kernel(
    tile_matrix, rows, state, keys, indices, tile_ties, window_ties, operands, gradients, rates,
    new_mean, old_square, new_square, eps,
    G_TYPE: tl.constexpr, W_TYPE: tl.constexpr, RENEW: tl.constexpr,
    ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Update the scores of a tile and, to renew the masks, take its share in the count of the window."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row, search = rows + matrix * COLUMNS, state + matrix * STATE
    size = tl.where(goes(rates), tl.load(row + SIZE), 0)
    begin = (tile - tl.load(row + FIRST_TILE)) * TILE
    end = tl.minimum(begin + TILE, size)
    grad = _address(gradients + matrix, G_TYPE, ALIGNED)
    weight = _address(operands + matrix * 3, W_TYPE, ALIGNED)
    mean = _address(operands + matrix * 3 + 1, tl.float32, ALIGNED)
    square = _address(operands + matrix * 3 + 2, tl.float32, ALIGNED)
    score = _address(row + ADDRESS, tl.float32, ALIGNED)
    if RENEW:
        low, high, first, second, keys, indices, room = begin_count(row, search, keys, indices)
    above, ties = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
    for start in range(begin, end, PART):
        entry = start + tl.arange(0, PART)
        inside = entry < size
        if start + PART <= end:
            new = _update(
                grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                rates, new_mean, old_square, new_square, eps, True,
            )  # fmt: skip
        else:
            new = _update(
                grad + entry, weight + entry, score + entry, mean + entry, square + entry, inside,
                rates, new_mean, old_square, new_square, eps, False,
            )  # fmt: skip
        if RENEW:
            tl.debug_barrier()  # it reads some scores again
            above, ties = count_part(
                new, score, start, end, search, low, high, first, second, keys, indices, room, above, ties,
                ABSOLUTE, PART, False,
            )  # fmt: skip
    if RENEW:
        end_count(above, ties, tile, search, tile_ties, window_ties)


def gradient_norm(grads: list[Tensor], weights: list[Tensor]) -> Tensor:
    device = weights[0].device
    grads, weights = alike(grads), alike(weights)
    sizes = [each.numel() for each in weights]

    def make() -> Table:
        tiles = [tiles_of(size, TILE) for size in sizes]
        rows = [(w.data_ptr(), size, sum(tiles[:i])) for i, (w, size) in enumerate(zip(weights, sizes, strict=True))]
        return Table(rows, tiles, device)

    matrices = table(("gradient_norm", device, TILE, *(each.data_ptr() for each in weights), *sizes), make)
    # Summed in one order, by torch: float atomics would give other bits each time.
    sums = torch.empty(matrices.tile_matrix.numel(), dtype=torch.float64, device=device)
    launch(
        norm_kernel, (sums.numel(),), matrices.tile_matrix, matrices.rows, addresses(grads), sums,
        G_TYPE=TYPES[grads[0].dtype], W_TYPE=TYPES[weights[0].dtype], ALIGNED=aligned((*grads, *weights)), TILE=TILE,
        num_warps=WARPS,
    )  # fmt: skip
    return sums.sum().sqrt().to(torch.float32)


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

    def make() -> Table:
        lists = zip(weights, means, squares, strict=True)
        return Table([[each.data_ptr() for each in three] for three in lists], [0] * len(weights), values.device)

    written = (*means, *squares)
    key = ("mask_adamw", values.device, *(each.data_ptr() for each in (*weights, *written)))
    launch(
        adamw_kernel, search.tiles, *search.counted, table(key, make).rows, addresses(grads), rates,
        1 - beta1, beta2, 1 - beta2, eps,
        G_TYPE=TYPES[grads[0].dtype], W_TYPE=TYPES[weights[0].dtype], RENEW=renew, ABSOLUTE=absolute,
        ALIGNED=aligned((*grads, *weights, *scores, *written)), TILE=search.how["TILE"], PART=PART,
        num_warps=1,
    )  # fmt: skip
    if not renew:
        return
    search.finish(values, cuts, None, rates)
    made = [each for each in masked if each.numel() > 0]
    if not made:
        return
    base, size = made[0].data_ptr(), made[0].element_size()
    offsets = [(each.data_ptr() - base) // size if each.numel() > 0 else 0 for each in masked]
    weights = [
        weight if each.numel() > 0 else weight.new_empty(0) for weight, each in zip(weights, masked, strict=True)
    ]
    # Where gradients lie in place of masked weights, these are made anew even if no step is taken.
    write_masked(weights, scores, values, cuts, offsets, made[0], None, absolute, None if overwritten else rates)
