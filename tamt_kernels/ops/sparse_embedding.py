"""An embedding over the kept entries of a weight: the rows that are looked up are expanded."""

from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate
from tamt_kernels.ops.pack_sparse import SparseWeight


def _fake(
    ids: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    width: int,
    padding_idx: int | None = None,
) -> Tensor:
    return values.new_empty((*ids.shape, width))


def _fake_backward(
    grad_output: Tensor, ids: Tensor, columns: Tensor, counts: Tensor, starts: Tensor, padding_idx: int | None
) -> Tensor:
    return grad_output.new_empty(columns.shape)


operator = define(
    "sparse_embedding(Tensor ids, Tensor values, Tensor columns, Tensor counts, Tensor starts, SymInt width, "
    "int? padding_idx=None) -> Tensor",
    eager=reference.sparse_embedding,
    fake=_fake,
)
_backward_operator = define(
    "sparse_embedding_backward(Tensor grad_output, Tensor ids, Tensor columns, Tensor counts, Tensor starts, "
    "int? padding_idx) -> Tensor",
    eager=reference.sparse_embedding_backward,
    fake=_fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, _values, columns, counts, starts, _width, padding_idx = inputs
    ctx.save_for_backward(ids, columns, counts, starts)
    ctx.padding_idx = padding_idx


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = _backward_operator(grad_output, *ctx.saved_tensors, ctx.padding_idx)
    return None, grad_values, None, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, ids, columns, counts, starts, padding_idx = inputs
    ctx.save_for_backward(ids, columns, counts, starts)
    ctx.padding_idx, ctx.width = padding_idx, grad_output.shape[-1]


def _double_backward(ctx: Any, grad_grad_values: Tensor) -> tuple[Tensor | None, ...]:
    ids, *pattern = ctx.saved_tensors
    rows = operator(ids, grad_grad_values, *pattern, ctx.width)
    if ctx.padding_idx is not None:
        rows = rows.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0)
    return rows, None, None, None, None, None


differentiate("sparse_embedding", _backward, _save)
differentiate("sparse_embedding_backward", _double_backward, _save_backward)


def sparse_embedding(ids: Tensor, weight: SparseWeight, padding_idx: int | None = None) -> Tensor:
    """The rows ``ids`` of a matrix of which only the kept entries are stored.

    Differentiable, at the kept entries alone, in ``weight.values``.

    Args:
        ids: int64 or int32, any shape, each from 0 to rows - 1.
        weight: W [rows, columns], as ``pack_sparse`` makes it.
        padding_idx: a row that gets no gradient; the row itself is returned like any other. Negative values count from
            the last row.

    Returns:
        [*ids.shape, columns], in the type of the values.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        IndexError: an id is out of range, on a CPU.
    """
    if not isinstance(weight, SparseWeight):
        raise TypeError(
            f"sparse_embedding: weight is a {type(weight).__name__} but must be a SparseWeight, as pack_sparse makes it"
        )
    checks.tensor("sparse_embedding", "ids", ids)
    checks.dtype("sparse_embedding", "ids", ids, (torch.int64, torch.int32))
    checks.device("sparse_embedding", "ids", ids, weight.device, "weight")
    if padding_idx is not None:
        checks.row_of("sparse_embedding", "padding_idx", padding_idx, tuple(weight.shape))
        padding_idx %= weight.shape[0]
    pattern = weight.columns, weight.counts, weight.starts
    rows: Tensor = operator(ids, weight.values, *pattern, weight.shape[1], padding_idx)
    return rows
