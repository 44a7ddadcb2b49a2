"""What the kernels share: exact conversions, the mask's condition, and the addresses of many matrices."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments are of Triton's own language, which no annotation tells.

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries that a program handles. 4,096 of S and of W in float32 are 32 KB in flight for each program of 8 warps,
# and 16 entries a thread are whole 16-byte loads for every type.
TILE = 4096

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


# A product and a sum are rounded one after the other, as in the definitions, unless a kernel says fma.
COMPILER = {"enable_fp_fusion": False}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a kernel. Every launch goes through here, so that tests see what is compiled for it."""
    if all(grid):
        kernel[grid](*arguments, **options, **COMPILER)


@triton.jit
def widen(x):
    """float32, exactly. bfloat16 by its bits: devices older than sm_80 and the interpreter know no other."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """float32 to TYPE, to nearest even. bfloat16 by its bits, as in ``widen``."""
    if tl.bfloat16 == TYPE:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where(x != x, 0x7FC0, nearest).to(tl.int16)
        return half.to(tl.bfloat16, bitcast=True)
    return x.to(TYPE)


@triton.jit
def read(pointer, inside, WHOLE: tl.constexpr):
    """A tile in float32. Only without a condition are loads 16 bytes wide."""
    if WHOLE:
        return widen(tl.load(pointer))
    return widen(tl.load(pointer, mask=inside, other=0.0))


@triton.jit
def pointer_at(place, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address that lies at a place, of entries of a type."""
    found = tl.load(place).to(tl.pointer_type(TYPE))
    if ALIGNED:  # what the compiler cannot see of an address that it loads
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def keeps(score, index, value, cut, ABSOLUTE: tl.constexpr):
    """The mask: where the score is above the threshold, or ties with it before the cut (eq. 3)."""
    rank = widen(score)
    if ABSOLUTE:
        rank = tl.abs(rank)
    return (rank > value) | ((rank == value) & (index < cut))


@triton.jit
def goes(factor):
    """Whether a step is taken: there is none, or its gradient, and so the factor that clips it, is finite."""
    going = tl.full((), 1, tl.int1)
    if factor is not None:
        going = tl.abs(tl.load(factor)) < float("inf")
    return going


class Table:
    """What one launch over many matrices looks up: which matrix a tile belongs to, and where that lies.

    ``rows`` (int64, [M, columns]) holds for each matrix the columns given; ``tile_matrix`` (int32, [tiles]) the
    matrix of each tile.
    """

    def __init__(self, rows: Sequence[Sequence[int]], tiles: Sequence[int], device: torch.device) -> None:
        self.rows = _without_waiting(torch.tensor(rows, dtype=torch.int64), device)
        self.tile_matrix = matrix_of_each(tiles, device)
        self.stream = _stream(device)


def matrix_of_each(counts: Sequence[int], device: torch.device) -> Tensor:
    """Each matrix's number as often as it is counted, int32."""
    numbers = torch.arange(len(counts), dtype=torch.int32)
    return _without_waiting(numbers.repeat_interleave(torch.tensor(counts, dtype=torch.int64)), device)


def _stream(device: torch.device) -> int:
    """Which of a GPU's streams launches go to."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _without_waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. From pageable memory the host would wait until all before it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# A table is made once for the same matrices at the same addresses, that is once in a training run: its copy to the
# device would cost more than the launch, and cannot be captured in a CUDA graph. It holds for the stream that its copy
# went to, as others need not wait for that; but a graph begins when the device is done with all.
_TABLES: dict[Any, Any] = {}
_CAPTURED: list[Table] = []  # a graph reads its tables whenever it is replayed
_MOST_TABLES = 64
Made = TypeVar("Made", bound=Table)


def table(key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """The table for a key that holds all that it is made of."""
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    found: Made | None = _TABLES.pop(key, None)
    if found is None or not (capturing or found.stream == _stream(found.rows.device)):
        if capturing:
            raise RuntimeError(f"tamt_kernels: {key[0]} must run once for the same tensors before a graph captures it")
        found = make()
    _TABLES[key] = found  # the last used comes last
    if len(_TABLES) > _MOST_TABLES:
        del _TABLES[next(iter(_TABLES))]
    if capturing and found not in _CAPTURED:
        _CAPTURED.append(found)
    return found


# Pointers that one launch takes, in less than the 4 KB of arguments that every GPU has room for.
ADDRESSES_AT_ONCE = 256


@triton.jit
def addresses_kernel(tensors, addresses):
    for i in tl.static_range(len(tensors)):
        tl.store(addresses + i, tensors[i].to(tl.int64))


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """The addresses of tensors that are new in every step, as gradients are, int64 [M], on their device.

    They travel as arguments of a launch: no copy from the host, whose memory would have to be left alone until the
    device has read it, and a CUDA graph holds those that its own memory had while it was captured.
    """
    found = torch.empty(len(tensors), dtype=torch.int64, device=tensors[0].device)
    for first in range(0, len(tensors), ADDRESSES_AT_ONCE):
        some = tuple(tensors[first : first + ADDRESSES_AT_ONCE])
        launch(addresses_kernel, (1,), some, found[first:], num_warps=1)
    return found


def tiles_of(size: int, tile: int) -> int:
    return -(-size // tile)


def alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors of one type: their own where they share it, else float32, in which all are exact."""
    same = len({each.dtype for each in tensors}) == 1
    return [(each if same else each.to(torch.float32)).contiguous() for each in tensors]


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether 16-byte loads may be used from the first entry on; views with an offset may lie anywhere."""
    return all(each.data_ptr() % 16 == 0 for each in tensors)
