"""Zeros where masks prune, in place: one launch for all tensors of a dtype."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.triton_kernels.common import TILE, TYPES, Table, addresses, launch, table, tiles_of

WARPS = 8


@triton.jit
def prune_kernel(tile_matrix, rows, pointers, TYPE: tl.constexpr, TILE: tl.constexpr):
    """A tile of one of the tensors: zeros where its bits are 0."""
    matrix = tl.load(tile_matrix + tl.program_id(0))
    row = rows + matrix * 3
    entries = tl.load(pointers + matrix).to(tl.pointer_type(TYPE))
    bits, size = tl.load(row).to(tl.pointer_type(tl.uint8)), tl.load(row + 1)
    start = (tl.program_id(0) - tl.load(row + 2)) * TILE
    lane = tl.arange(0, TILE)
    inside = lane < size - start
    byte = tl.load(bits + start // 8 + lane // 8, mask=inside, other=255).to(tl.int32)
    tl.store(entries + start + lane, 0.0, mask=inside & (((byte >> (lane % 8)) & 1) == 0))


def prune_(tensors: list[Tensor], packed: list[Tensor]) -> None:
    whole = [i for i, tensor in enumerate(tensors) if tensor.is_contiguous()]
    for dtype in dict.fromkeys(tensors[i].dtype for i in whole):
        chosen = [i for i in whole if tensors[i].dtype == dtype]
        _prune([tensors[i] for i in chosen], [packed[i] for i in chosen])
    # Strided tensors one by one and in place: copies of tensors that share memory would undo each other's zeros.
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
