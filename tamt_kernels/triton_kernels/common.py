"""Shared by the kernels: exact conversions, the mask's condition, and tables with the addresses of many matrices."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries per program. 4,096 entries of S and of W in float32 keep 32 KB in flight for each program of 8 warps, and 16
# entries per thread are whole 16-byte loads for every type.
TILE = 4096

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

# A product and a sum are rounded separately, as in the definitions, unless a kernel calls fma.
COMPILER = {"enable_fp_fusion": False}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a kernel. Every launch goes through here, so that tests can record what is compiled."""
    if all(grid):
        kernel[grid](*arguments, **options, **COMPILER)


@triton.jit
def widen(x):
    """Convert to float32, exactly. bfloat16 by its bits: GPUs before sm_80 and the interpreter have no other way."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """Round float32 to TYPE, to nearest even. bfloat16 by its bits, as in ``widen``."""
    if tl.bfloat16 == TYPE:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where(x != x, 0x7FC0, nearest).to(tl.int16)
        return half.to(tl.bfloat16, bitcast=True)
    return x.to(TYPE)


@triton.jit
def read(pointer, inside, WHOLE: tl.constexpr):
    """Load a tile as float32. Loads are 16 bytes wide only without a condition."""
    if WHOLE:
        return widen(tl.load(pointer))
    return widen(tl.load(pointer, mask=inside, other=0.0))


@triton.jit
def write(pointer, value, inside, WHOLE: tl.constexpr):
    """Store a tile. Stores are 16 bytes wide only without a condition."""
    if WHOLE:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=inside)


@triton.jit
def pointer_at(cell, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Load a pointer to entries of a type from a cell of a table."""
    pointer = tl.load(cell).to(tl.pointer_type(TYPE))
    if ALIGNED:  # the compiler cannot know this of a pointer that it loads
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def keeps(score, index, value, cut, ABSOLUTE: tl.constexpr):
    """The mask: true where the score is above the threshold, or equal to it before the cut (eq. 3)."""
    rank = widen(score)
    if ABSOLUTE:
        rank = tl.abs(rank)
    return (rank > value) | ((rank == value) & (index < cut))


@triton.jit
def is_finite(factor):
    """Whether the factor that clips a gradient is finite, so that the step is taken; true if there is no factor."""
    finite = tl.full((), 1, tl.int1)
    if factor is not None:
        finite = tl.abs(tl.load(factor)) < float("inf")
    return finite


class Table:
    """The table that one launch over many matrices reads.

    ``rows`` (int64, [M, columns]) describes each matrix, by its address and size for example; ``tile_matrix`` (int32,
    [tiles]) is the matrix of each tile.
    """

    def __init__(self, rows: Sequence[Sequence[int]], tiles: Sequence[int], device: torch.device) -> None:
        self.rows = _without_waiting(torch.tensor(rows, dtype=torch.int64), device)
        self.tile_matrix = matrix_numbers(tiles, device)
        self.stream = _stream(device)


def matrix_numbers(counts: Sequence[int], device: torch.device) -> Tensor:
    """Each matrix's number, repeated as often as its count says, int32."""
    numbers = torch.arange(len(counts), dtype=torch.int32)
    return _without_waiting(numbers.repeat_interleave(torch.tensor(counts, dtype=torch.int64)), device)


def _stream(device: torch.device) -> int:
    """The stream of a GPU that launches go to; 0 on a CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _without_waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. From pageable memory the host would wait for the device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# A table is made once for the same matrices at the same addresses, so once per training run: to copy it to the device
# takes longer than a launch, and a CUDA graph cannot capture the copy. A table is valid on the stream of its copy, for
# which other streams do not wait. A graph may use it on any stream, as it starts after the copy.
_TABLES: dict[Any, Any] = {}
_CAPTURED: list[Table] = []  # kept, because a graph reads its tables at every replay
_MAX_TABLES = 64
AnyTable = TypeVar("AnyTable", bound=Table)


def table(key: tuple[Any, ...], make: Callable[[], AnyTable]) -> AnyTable:
    """The cached table for a key, which must name everything that the table depends on.

    Raises:
        RuntimeError: a CUDA graph is being captured and there is no table yet.
    """
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    cached: AnyTable | None = _TABLES.pop(key, None)
    if cached is None or not (capturing or cached.stream == _stream(cached.rows.device)):
        if capturing:
            raise RuntimeError(f"tamt_kernels: {key[0]} must run once for the same tensors before a graph captures it")
        cached = make()
    _TABLES[key] = cached  # the most recently used comes last
    if len(_TABLES) > _MAX_TABLES:
        del _TABLES[next(iter(_TABLES))]
    if capturing and cached not in _CAPTURED:
        _CAPTURED.append(cached)
    return cached


# Pointers per launch: their 2 KB fit into the 4 KB of arguments that every GPU has room for.
ADDRESSES_AT_ONCE = 256


@triton.jit
def addresses_kernel(tensors, addresses):
    for i in tl.static_range(len(tensors)):
        tl.store(addresses + i, tensors[i].to(tl.int64))


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """The addresses of tensors that are new in every step, such as gradients: int64 [M], on their device.

    They are passed as arguments of a launch. So no memory of the host must stay untouched until the device has read it,
    and a CUDA graph keeps the addresses that its tensors had when it was captured.
    """
    pointers = torch.empty(len(tensors), dtype=torch.int64, device=tensors[0].device)
    for first in range(0, len(tensors), ADDRESSES_AT_ONCE):
        batch = tuple(tensors[first : first + ADDRESSES_AT_ONCE])
        launch(addresses_kernel, (1,), batch, pointers[first:], num_warps=1)
    return pointers


def tiles_of(size: int, tile: int) -> int:
    return -(-size // tile)


def same_type(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, contiguous and in one dtype: their own if they share it, else float32, in which all are exact."""
    same = len({tensor.dtype for tensor in tensors}) == 1
    return [(tensor if same else tensor.to(torch.float32)).contiguous() for tensor in tensors]


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether every tensor starts at a multiple of 16 bytes, as 16-byte loads need; a view with an offset may not."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
