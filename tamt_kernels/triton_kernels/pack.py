"""Masks packed to one bit per entry, and unpacked."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import TILE, launch, tiles_of

WARPS = 8


@triton.jit
def write_bits(mask, bits, start, size, TILE: tl.constexpr):
    """Pack a tile, eight entries per byte, the first in the lowest bit. Entries past the end must be 0."""
    powers = (1 << tl.arange(0, 8)).to(tl.int32)
    byte = tl.sum(tl.reshape(mask.to(tl.int32), (TILE // 8, 8)) * powers[None, :], axis=1)
    position = tl.arange(0, TILE // 8)
    tl.store(bits + start // 8 + position, byte.to(tl.uint8), mask=position * 8 < size - start)


@triton.jit
def pack_kernel(mask, bits, size, TILE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    write_bits(tl.load(mask + start + lane, mask=lane < size - start, other=0), bits, start, size, TILE)


@triton.jit
def unpack_kernel(bits, mask, size, TILE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    byte = tl.load(bits + start // 8 + lane // 8, mask=inside, other=0).to(tl.int32)
    tl.store(mask + start + lane, ((byte >> (lane % 8)) & 1).to(tl.uint8), mask=inside)


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
