"""Binarize, mask, cast and pack in one pass: of one matrix, or of all of them in one launch; unpack, and prune."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.reference import group_offsets
from tamt_kernels.triton_kernels.common import (
    TILE,
    TYPES,
    Table,
    addresses,
    aligned,
    alike,
    keeps,
    launch,
    pointer_at,
    rounded,
    table,
    tiles_of,
    widen,
)

WARPS = 8


@triton.jit
def _write_bits(mask, bits, start, size, TILE: tl.constexpr):
    """Eight entries a byte, the first in the lowest bit; the padding of the last byte is 0 already."""
    powers = (1 << tl.arange(0, 8)).to(tl.int32)
    byte = tl.sum(tl.reshape(mask.to(tl.int32), (TILE // 8, 8)) * powers[None, :], axis=1)
    position = tl.arange(0, TILE // 8)
    tl.store(bits + start // 8 + position, byte.to(tl.uint8), mask=position * 8 < size - start)


@triton.jit
def _mask_tile(
    weight, score, value, cut, masked, mask, bits, start, size,
    ABSOLUTE: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    tile_cut = tl.minimum(tl.maximum(cut - start, 0), TILE).to(tl.int32)
    # Only without a condition are loads and stores 16 bytes wide, so whole tiles have none.
    if WHOLE:
        kept = keeps(tl.load(score + start + lane), lane, value, tile_cut, ABSOLUTE)
    else:
        kept = keeps(tl.load(score + start + lane, mask=inside, other=0.0), lane, value, tile_cut, ABSOLUTE) & inside
    if masked is not None:
        if WHOLE:
            w = widen(tl.load(weight + start + lane))
        else:
            w = widen(tl.load(weight + start + lane, mask=inside, other=0.0))
        result = rounded(tl.where(kept, w, 0.0), masked.dtype.element_ty)
        if WHOLE:
            tl.store(masked + start + lane, result)
        else:
            tl.store(masked + start + lane, result, mask=inside)
    if mask is not None:
        if WHOLE:
            tl.store(mask + start + lane, kept.to(tl.uint8))
        else:
            tl.store(mask + start + lane, kept.to(tl.uint8), mask=inside)
    if bits is not None:
        _write_bits(kept, bits, start, size, TILE)


@triton.jit
def mask_kernel(
    weight, score, value_pointer, cut_pointer, masked, mask, size, ABSOLUTE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """A tile of one matrix: W ⊙ m to ``masked`` or m to ``mask``, whichever is there."""
    start = tl.program_id(0).to(tl.int64) * TILE
    value, cut = tl.load(value_pointer), tl.load(cut_pointer)
    if start + TILE <= size:
        _mask_tile(weight, score, value, cut, masked, mask, None, start, size, ABSOLUTE, TILE, True)
    else:
        _mask_tile(weight, score, value, cut, masked, mask, None, start, size, ABSOLUTE, TILE, False)


@triton.jit
def group_kernel(
    tile_matrix, rows, values, cuts, masked, bits,
    W_TYPE: tl.constexpr, S_TYPE: tl.constexpr, ABSOLUTE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of any of the matrices: W ⊙ m to ``masked`` and, where it is there, m to ``bits``."""
    tile = tl.program_id(0)
    matrix = tl.load(tile_matrix + tile)
    row = rows + matrix * 5
    weight = pointer_at(row, W_TYPE, ALIGNED)
    score = pointer_at(row + 1, S_TYPE, ALIGNED)
    size = tl.load(row + 2)
    offset = tl.load(row + 3)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    start = (tile - tl.load(row + 4)) * TILE
    value, cut = tl.load(values + matrix), tl.load(cuts + matrix)
    masked += offset
    if bits is not None:
        bits += offset // 8
    if start + TILE <= size:
        _mask_tile(weight, score, value, cut, masked, None, bits, start, size, ABSOLUTE, TILE, True)
    else:
        _mask_tile(weight, score, value, cut, masked, None, bits, start, size, ABSOLUTE, TILE, False)


@triton.jit
def pack_kernel(mask, bits, size, TILE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    _write_bits(tl.load(mask + start + lane, mask=lane < size - start, other=0), bits, start, size, TILE)


@triton.jit
def unpack_kernel(bits, mask, size, TILE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    byte = tl.load(bits + start // 8 + lane // 8, mask=inside, other=0).to(tl.int32)
    tl.store(mask + start + lane, ((byte >> (lane % 8)) & 1).to(tl.uint8), mask=inside)


@triton.jit
def prune_kernel(tile_matrix, rows, entries_at, TYPE: tl.constexpr, TILE: tl.constexpr):
    """A tile of any of the matrices: zeros where its bits are 0."""
    matrix = tl.load(tile_matrix + tl.program_id(0))
    row = rows + matrix * 3
    entries = tl.load(entries_at + matrix).to(tl.pointer_type(TYPE))
    bits, size = tl.load(row).to(tl.pointer_type(tl.uint8)), tl.load(row + 1)
    start = (tl.program_id(0) - tl.load(row + 2)) * TILE
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    byte = tl.load(bits + start // 8 + lane // 8, mask=inside, other=255).to(tl.int32)
    tl.store(entries + start + lane, 0.0, mask=inside & (((byte >> (lane % 8)) & 1) == 0))


def binarize(score: Tensor, value: Tensor, cut: Tensor, absolute: bool = False) -> Tensor:
    mask = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    score, size = score.contiguous(), score.numel()
    grid = (tiles_of(size, TILE),)
    launch(
        mask_kernel, grid, None, score, value, cut, None, mask.view(torch.uint8), size,
        ABSOLUTE=absolute, TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
    return mask


def mask_weight(
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    dtype: torch.dtype | None = None,
    absolute: bool = False,
) -> Tensor:
    masked = torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)
    weight, score, size = weight.contiguous(), score.contiguous(), weight.numel()
    grid = (tiles_of(size, TILE),)
    launch(
        mask_kernel, grid, weight, score, value, cut, masked, None, size,
        ABSOLUTE=absolute, TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
    return masked


def mask_weights(
    weights: list[Tensor],
    scores: list[Tensor],
    values: Tensor,
    cuts: Tensor,
    dtype: torch.dtype,
    pack: bool = False,
    absolute: bool = False,
) -> tuple[Tensor, Tensor]:
    device = values.device
    sizes = [each.numel() for each in weights]
    offsets, total = group_offsets(sizes)
    # Up to 15 entries lie between the matrices, zero by definition; BERT's matrices leave no gap to fill.
    new = torch.zeros if any(size % 16 for size in sizes) else torch.empty
    masked = new(total, dtype=dtype, device=device)
    bits = torch.zeros(total // 8 if pack else 0, dtype=torch.uint8, device=device)
    if not total:
        return masked, bits
    weights, scores = alike(weights), alike(scores)

    def make() -> Table:
        tiles = [tiles_of(size, TILE) for size in sizes]
        first = [sum(tiles[:i]) for i in range(len(tiles))]
        pairs = [(w.data_ptr(), s.data_ptr()) for w, s in zip(weights, scores, strict=True)]
        rows = [(*pair, *rest) for pair, *rest in zip(pairs, sizes, offsets, first, strict=True)]
        return Table(rows, tiles, device)

    lie = [each.data_ptr() for each in (*weights, *scores)]
    matrices = table(("mask_weights", device, TILE, *lie, *sizes, *offsets), make)
    launch(
        group_kernel, (matrices.tile_matrix.numel(),), matrices.tile_matrix, matrices.rows,
        values.contiguous(), cuts.contiguous(), masked, bits if pack else None,
        W_TYPE=TYPES[weights[0].dtype], S_TYPE=TYPES[scores[0].dtype], ABSOLUTE=absolute,
        ALIGNED=aligned((*weights, *scores)) and all(offset % 16 == 0 for offset in offsets), TILE=TILE,
        num_warps=WARPS,
    )  # fmt: skip
    return masked, bits


def pack_mask(mask: Tensor) -> Tensor:
    size = mask.numel()
    bits = torch.empty((size + 7) // 8, dtype=torch.uint8, device=mask.device)
    flat = mask.contiguous().view(torch.uint8)
    launch(pack_kernel, (tiles_of(size, TILE),), flat, bits, size, TILE=TILE, num_warps=WARPS)
    return bits


def unpack_mask(packed: Tensor, shape: list[int]) -> Tensor:
    mask = torch.empty(shape, dtype=torch.bool, device=packed.device)
    grid = (tiles_of(mask.numel(), TILE),)
    launch(unpack_kernel, grid, packed.contiguous(), mask.view(torch.uint8), mask.numel(), TILE=TILE, num_warps=WARPS)
    return mask


def prune_(tensors: list[Tensor], packed: list[Tensor]) -> None:
    whole = [i for i, tensor in enumerate(tensors) if tensor.is_contiguous()]
    for dtype in dict.fromkeys(tensors[i].dtype for i in whole):
        some = [i for i in whole if tensors[i].dtype == dtype]
        _prune([tensors[i] for i in some], [packed[i] for i in some])
    # Others one by one and in place: of several that share memory, copies would undo each other's zeros.
    rest = [i for i in range(len(tensors)) if i not in set(whole)]
    reference.prune_([tensors[i] for i in rest], [packed[i] for i in rest])


def _prune(tensors: list[Tensor], packed: list[Tensor]) -> None:
    """Prune contiguous tensors of one dtype."""
    device, sizes = tensors[0].device, [tensor.numel() for tensor in tensors]
    packed = [bits.contiguous() for bits in packed]

    def make() -> Table:
        tiles = [tiles_of(size, TILE) for size in sizes]
        first = [sum(tiles[:i]) for i in range(len(tiles))]
        return Table(list(zip((bits.data_ptr() for bits in packed), sizes, first, strict=True)), tiles, device)

    matrices = table(("prune_", device, TILE, *(bits.data_ptr() for bits in packed), *sizes), make)
    launch(
        prune_kernel, (matrices.tile_matrix.numel(),), matrices.tile_matrix, matrices.rows, addresses(tensors),
        TYPE=TYPES[tensors[0].dtype], TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
