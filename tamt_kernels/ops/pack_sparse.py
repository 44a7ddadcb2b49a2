"""A weight of which only the kept entries are stored."""

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks

VALUE_TYPES = (torch.float32, torch.bfloat16)
BAND = 1 << 20  # entries that are packed at a time: on the way they take many times the memory of the result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseWeight:
    """A matrix W [out, in] of which only the kept entries are stored; made by ``pack_sparse`` or ``from_kept``.

    A kept entry takes its value and one byte, and a row 2 bytes for every 128 columns. It is not to be changed: its
    tensors may be shared.

    Attributes:
        shape: (out, in).
        values: the kept entries [nnz], float32 or bfloat16, in the order of the kernels; ``kept`` has that of the rows.
        columns, order, counts, starts: where they are, see ``reference.sparse_pattern``.
    """

    shape: torch.Size
    values: Tensor
    columns: Tensor
    order: Tensor
    counts: Tensor
    starts: Tensor

    @classmethod
    def from_kept(cls, mask: Tensor, values: Tensor) -> "SparseWeight":
        """The inverse of ``kept``.

        Args:
            mask: bool [out, in].
            values: the entries where it is true, in row-major order, float32 or bfloat16.

        Raises:
            TypeError, ValueError: an argument has the wrong dtype, shape or device.
        """
        checks.tensor("SparseWeight", "mask", mask)
        checks.dtype("SparseWeight", "mask", mask, (torch.bool,))
        checks.dimensions("SparseWeight", "mask", mask, 2)
        checks.size("SparseWeight", "mask", mask)
        checks.tensor("SparseWeight", "values", values)
        checks.dtype("SparseWeight", "values", values, VALUE_TYPES)
        checks.device("SparseWeight", "values", values, mask.device, "mask")
        kept = int(mask.count_nonzero())
        checks.shape("SparseWeight", "values", values, (kept,), "a value for each true entry of mask")
        _check_entries(mask)
        bands = mask.split(_rows_at_once(mask))
        parts = values.detach().split([int(band.count_nonzero()) for band in bands])
        return cls._joined(mask.shape, (_pack(*band) for band in zip(map(_spread, parts, bands), bands, strict=True)))

    @classmethod
    def of(cls, dense: Tensor, mask: Tensor) -> "SparseWeight":
        """The entries of a matrix where a mask is true. ``pack_sparse`` checks its arguments first."""
        _check_entries(mask)
        rows = _rows_at_once(mask)
        return cls._joined(mask.shape, map(_pack, dense.split(rows), mask.split(rows)))

    @classmethod
    def _joined(cls, shape: torch.Size, bands: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> "SparseWeight":
        values, columns, order, counts = map(torch.cat, zip(*bands, strict=True))
        return cls(shape, values, columns, order, counts, reference.sparse_starts(counts))

    @property
    def pattern(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the entries are: columns, order, counts and starts."""
        return self.columns, self.order, self.counts, self.starts

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    @property
    def nnz(self) -> int:
        """The number of kept entries, those among them that are 0 included."""
        return self.values.numel()

    @property
    def sparsity(self) -> float:
        """The share of entries that are not kept."""
        return 1 - self.nnz / math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The memory that the matrix takes, in bytes."""
        return self.values.nbytes + sum(part.nbytes for part in self.pattern)

    def mask(self) -> Tensor:
        """Which entries are kept, bool [out, in]."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[reference.sparse_positions(self.columns, self.order, self.counts)] = True
        return mask

    def kept(self) -> tuple[Tensor, Tensor]:
        """The mask, bool [out, in], and the values [nnz] where it is true, in row-major order."""
        mask = self.mask()
        return mask, self.to_dense()[mask]

    def to_dense(self) -> Tensor:
        """The matrix [out, in] with its zeros, in the values' dtype."""
        return reference.sparse_dense(self.values, self.columns, self.order, self.counts, *self.shape)

    def to(self, device: torch.device | str) -> "SparseWeight":
        """The same on another device."""
        return SparseWeight(self.shape, self.values.to(device), *(part.to(device) for part in self.pattern))

    def __repr__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"SparseWeight({tuple(self.shape)}, {name}, sparsity={self.sparsity:.4f}, {self.nbytes / 1e6:.3g} MB)"


def _rows_at_once(mask: Tensor) -> int:
    """The rows of a band: whole cells, so that bands can be packed one by one, which takes less memory."""
    cell = reference.SPARSE_CELL
    return max(BAND // (cell * mask.shape[1]), 1) * cell


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """A matrix of these values where a mask is true, and zeros."""
    dense = values.new_zeros(mask.shape)
    dense[mask] = values
    return dense


def _pack(dense: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The values of whole cells, and their pattern but the starts."""
    columns, order, counts, _ = reference.sparse_pattern(mask)
    return dense[reference.sparse_positions(columns, order, counts)], columns, order, counts


def pack_sparse(weight: Tensor, mask: Tensor | None = None, *, values: torch.dtype | None = None) -> SparseWeight:
    """Store a matrix without the entries that are pruned.

    Args:
        weight: W [out, in]; float32, float16 or bfloat16.
        mask: which entries to keep, bool [out, in], whatever they are: 0, NaN and infinite entries stay what they are.
            By default those that are not 0.
        values: the type of the kept entries, float32 or bfloat16. By default that of W, of a float16 W float32: either
            is exact.

    Returns:
        The matrix, on W's device.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    if mask is None:
        checks.matrix("pack_sparse", "weight", weight)
        mask = weight != 0
    dtype = check_kept(weight, mask, values)
    return SparseWeight.of(weight.detach().to(dtype), mask)


def check_kept(weight: Tensor, mask: Tensor, values: torch.dtype | None) -> torch.dtype:
    """The type of the kept entries, for the arguments of ``pack_sparse``, whose errors it raises."""
    checks.matrix("pack_sparse", "weight", weight)
    checks.dimensions("pack_sparse", "weight", weight, 2)
    if values is not None and values not in VALUE_TYPES:
        raise TypeError(f"pack_sparse: values is {values} but must be float32 or bfloat16")
    checks.tensor("pack_sparse", "mask", mask)
    checks.dtype("pack_sparse", "mask", mask, (torch.bool,))
    checks.shape("pack_sparse", "mask", mask, tuple(weight.shape), "the shape of weight")
    checks.device("pack_sparse", "mask", mask, weight.device, "weight")
    _check_entries(mask)
    return values or (torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32)


def _check_entries(mask: Tensor) -> None:
    if 0 in mask.shape:
        raise ValueError(f"SparseWeight: mask has shape {tuple(mask.shape)} but must have rows and columns")


def check_sparse(operation: str, weight: object) -> None:
    """Raises TypeError if ``weight`` is no ``SparseWeight``."""
    if not isinstance(weight, SparseWeight):
        raise TypeError(
            f"{operation}: weight is a {type(weight).__name__} but must be a SparseWeight, as pack_sparse makes it"
        )
