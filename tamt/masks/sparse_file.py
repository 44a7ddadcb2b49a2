"""The sparse file: a pruned model as mask bits and kept values. docs/sparse-format.md specifies it for any reader."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import tamt_kernels as tk
from tamt.runtime.choices import Values
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.runtime.tensor_files import METADATA, check_version, join_header, read_header, split_header, unique_object
from tamt.runtime.untrusted import check_pulled
from tamt_kernels.backend.checks import MAX_ENTRIES

SPARSE_FILE = "sparse.safetensors"
"""The tensors of a sparse model, in its folder. Under another name transformers would draw the matrices at random."""
FORMAT = "tamt-sparse"
VERSION = 1
FIELDS = {"format", "format_version", "values", "shapes", "kept", "digest"}
MASK, VALUES = ".mask", ".values"
"""What the two tensors of a sparse matrix add to its name."""
TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Values)}
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""What safetensors calls these types."""
WHOLE = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types of tensors that are no weights, such as ids of positions; they are stored as they are."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """What a sparse file holds.

    Attributes:
        sparse: number of matrices that are stored as bits and values.
        matrices: number of all matrices, tensors of floats with two dimensions.
        sparsity: the share of zeros in all matrices together, 0 to 1.
        file_bytes: size of the file.
        dense_bytes: what the same tensors would take densely in float32.
    """

    sparse: int
    matrices: int
    sparsity: float
    file_bytes: int
    dense_bytes: int


def save_sparse(path: Path, state: Mapping[str, Tensor], values: Values) -> Sizes:
    """Write the tensors of a model to `path`, atomically. The same tensors give the same bytes.

    A matrix is stored as its mask and its kept values where that is smaller than all its values. An entry is kept if it
    is not zero, so NaN and infinity are; a negative zero is a zero.

    Args:
        path: replaced if it exists.
        state: tensors by name, on the CPU.
        values: the type of all floating-point numbers in the file; they are rounded to nearest, ties to even.

    Raises:
        UserError: a number is too large for `values`, or a tensor has a type that the file cannot hold.
        CannotWriteError: see `write_atomically`.
    """
    dtype = TYPES[values]
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    kept: dict[str, int] = {}
    entries = nonzero = matrices = 0
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            if tensor.dtype not in WHOLE:
                raise UserError(f"{path} cannot hold {name}, which is {tensor.dtype}; leave it out of the model")
            _add(tensors, name, tensor.clone(), path)
            continue
        matrix = tensor.dim() == 2 and tensor.numel() <= MAX_ENTRIES
        mask = tensor != 0
        count = int(mask.count_nonzero())
        if matrix:
            matrices, entries, nonzero = matrices + 1, entries + tensor.numel(), nonzero + count
        if not matrix or sparse_bytes(tensor.numel(), count, values) >= tensor.numel() * dtype.itemsize:
            _add(tensors, name, _rounded(tensor, values, name), path)
            continue
        shapes[name], kept[name] = list(tensor.shape), count
        _add(tensors, f"{name}{MASK}", tk.pack_mask(mask), path)
        _add(tensors, f"{name}{VALUES}", _rounded(tensor[mask], values, name), path)
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "values": values,
        "shapes": json.dumps(shapes, sort_keys=True),
        "kept": json.dumps(kept, sort_keys=True),
    }
    header, data = split_header(save(tensors, metadata))
    header[METADATA]["digest"] = _digest(header, data)
    write_atomically(path, join_header(header, data))
    return Sizes(
        sparse=len(shapes),
        matrices=matrices,
        sparsity=1 - nonzero / entries if entries else 0.0,
        file_bytes=path.stat().st_size,
        dense_bytes=sum(t.numel() * (4 if t.is_floating_point() else t.itemsize) for t in state.values()),
    )


def sparse_bytes(entries: int, kept: int, values: Values) -> int:
    """The bytes of the mask and the values of a matrix with these numbers of entries and kept entries."""
    return -(-entries // 8) + kept * TYPES[values].itemsize


@dataclass(frozen=True)
class SparseMatrix:
    """A matrix as a sparse file holds it.

    Attributes:
        shape: rows and columns.
        bits: its mask, as `tk.pack_mask` packs it.
        values: the kept entries in row-major order, float32.
    """

    shape: tuple[int, int]
    bits: Tensor
    values: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool, of the shape."""
        return tk.unpack_mask(self.bits, self.shape)

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1 - self.values.numel() / math.prod(self.shape)

    def equals(self, other: "SparseMatrix") -> bool:
        """Whether both are the same matrix."""
        same_mask = self.shape == other.shape and torch.equal(self.bits, other.bits)
        return same_mask and torch.equal(self.values, other.values)

    def to_dense(self) -> Tensor:
        """The matrix, float32."""
        return torch.zeros(self.shape).masked_scatter_(self.mask, self.values)


def load_sparse_state(path: Path) -> dict[str, Tensor]:
    """Read a sparse file: its tensors by name, all dense, floating-point ones as float32, on the CPU.

    The matrices take at most 32 times the size of the file.

    Raises:
        UserError: see `read_sparse`.
    """
    state, matrices = read_sparse(path)
    return state | {name: matrix.to_dense() for name, matrix in matrices.items()}


def read_sparse(path: Path) -> tuple[dict[str, Tensor], dict[str, SparseMatrix]]:
    """Read a sparse file: its dense tensors and its sparse matrices, by name, on the CPU.

    Floating-point numbers are float32; widening float16 and bfloat16 is exact. Nothing is believed: names, types, sizes
    and the digest are checked before memory is taken.

    Raises:
        UserError: the file is missing, damaged in any bit, of another format or version, or claims what it does not
            hold.
    """
    if not path.is_file():
        raise UserError(f"there is no sparse file {path}; write one with tamt export --format sparse")
    check_pulled(path)
    try:
        header = read_header(path)
        metadata = header[METADATA]
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is a safetensors file but no sparse model; give what tamt export wrote")
        check_version(path, "sparse", metadata, VERSION)
        if metadata.keys() != FIELDS:
            raise ValueError(f"its metadata are not {', '.join(sorted(FIELDS))}")
        shapes, kept = _matrices(metadata)
        dense = _check_tensors(header, shapes, kept, metadata["values"])
        with safe_open(path, framework="pt") as file:  # which checks that the file has the bytes its header claims
            _check_digest(path, header)
            state = {name: _widened(file.get_tensor(name)) for name in dense}
            matrices = {}
            for name, shape in shapes.items():
                values = _widened(file.get_tensor(f"{name}{VALUES}"))
                matrices[name] = SparseMatrix(shape, file.get_tensor(f"{name}{MASK}"), values)
                _check_mask(matrices[name], name)
    except (SafetensorError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"the sparse file {path} is damaged or no safetensors file ({' '.join(str(error).split())[:300]}); write "
            "it anew with tamt export --format sparse"
        ) from error
    return state, matrices


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor, path: Path) -> None:
    if name in tensors:
        raise UserError(f"{path} cannot hold two tensors of the name {name}; rename one of them in the model")
    tensors[name] = tensor.contiguous()


def _rounded(tensor: Tensor, values: Values, name: str) -> Tensor:
    """A copy in the type of the file, as tensors that share memory cannot be saved."""
    rounded = tensor.to(TYPES[values], copy=True)
    if (rounded.isinf() & tensor.isfinite()).any():
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise UserError(f"{name} holds {largest:.3g}, which is too large for {values}; give --values bfloat16")
    return rounded


def _matrices(metadata: Mapping[str, str]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """The shapes of the sparse matrices and how many entries of each are kept. Raises ValueError if they cannot be."""
    if metadata["values"] not in TYPES:
        raise ValueError(f"its values are {metadata['values'][:100]!r}, which is not one of {', '.join(TYPES)}")
    shapes, kept = unique_object(metadata["shapes"]), unique_object(metadata["kept"])
    if shapes.keys() != kept.keys():
        raise ValueError("its shapes and its numbers of kept entries are not of the same matrices")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"{name} has no shape of a matrix")
        entries = math.prod(shape)
        if entries > MAX_ENTRIES:
            raise ValueError(f"{name} claims {entries} entries")
        if type(kept[name]) is not int or not 0 <= kept[name] <= entries:
            raise ValueError(f"{name} keeps {str(kept[name])[:100]} of {entries} entries")
    return {name: tuple(shape) for name, shape in shapes.items()}, kept


def _check_tensors(
    header: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]], kept: Mapping[str, int], values: str
) -> list[str]:
    """Check the types and sizes of all tensors in a header. Returns the names of the dense ones; raises ValueError."""
    if not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("its header describes no tensors")
    wanted = {f"{name}{MASK}": ("U8", [-(-math.prod(shape) // 8)]) for name, shape in shapes.items()}
    wanted |= {f"{name}{VALUES}": (FLOATS[values], [count]) for name, count in kept.items()}
    for name, (dtype, shape) in wanted.items():
        if name not in header:
            raise ValueError(f"{name} is missing")
        if header[name].get("dtype") != dtype or header[name].get("shape") != shape:
            raise ValueError(f"{name} is not {dtype} of shape {shape}")
    dense = [name for name in header if name not in wanted and name != METADATA]
    for name in dense:
        if header[name].get("dtype") not in {FLOATS[values], *WHOLE.values()}:
            raise ValueError(f"{name} is {str(header[name].get('dtype'))[:20]} in a file of {values}")
        if name in shapes:
            raise ValueError(f"{name} is there both dense and sparse")
    return dense


def _check_mask(matrix: SparseMatrix, name: str) -> None:
    """Check that the mask of a matrix has a one for each value. Raises ValueError if not."""
    rest, kept, ones = math.prod(matrix.shape) % 8, matrix.values.numel(), int(matrix.mask.count_nonzero())
    if rest and int(matrix.bits[-1]) >> rest:
        raise ValueError(f"{name} has ones after its last entry")
    if ones != kept:
        raise ValueError(f"the mask of {name} has {ones} ones and not the {kept} of its metadata")


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_digest(path: Path, header: Mapping[str, Any]) -> None:
    """Check the digest of a file without holding it. Raises ValueError if it is wrong."""
    digest = _header_digest(header)
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != header[METADATA]["digest"]:
        raise ValueError("its digest is wrong")


def _digest(header: Mapping[str, Any], data: memoryview) -> str:
    digest = _header_digest(header)
    digest.update(data)
    return digest.hexdigest()


def _header_digest(header: Mapping[str, Any]) -> Any:
    """The SHA-256 of a header but its digest, to be continued with the data."""
    metadata = {key: value for key, value in header[METADATA].items() if key != "digest"}
    return hashlib.sha256(json.dumps({**header, METADATA: metadata}, sort_keys=True).encode())
