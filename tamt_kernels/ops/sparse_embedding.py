"""An embedding over the kept entries of a weight: the rows that are looked up are expanded."""

from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate
from tamt_kernels.ops.pack_sparse import SparseWeight, check_sparse
from tamt_kernels.ops.sparse_linear import PATTERN


def _fake(
    ids: Tensor,
    values: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    width: int,
    padding_idx: int | None = None,
) -> Tensor:
    return values.new_empty((*ids.shape, width))


def _fake_backward(
    grad_output: Tensor,
    ids: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    padding_idx: int | None,
) -> Tensor:
    return grad_output.new_empty(columns.shape)


operator = define(
    f"sparse_embedding(Tensor ids, Tensor values, {PATTERN}, SymInt rows, SymInt width, int? padding_idx=None) "
    "-> Tensor",
    eager=reference.sparse_embedding,
    fake=_fake,
)
_backward_operator = define(
    f"sparse_embedding_backward(Tensor grad_output, Tensor ids, {PATTERN}, SymInt rows, int? padding_idx) -> Tensor",
    eager=reference.sparse_embedding_backward,
    fake=_fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, _values, *pattern, rows, _width, padding_idx = inputs
    ctx.save_for_backward(ids, *pattern)
    ctx.rows, ctx.padding_idx = rows, padding_idx


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = _backward_operator(grad_output, *ctx.saved_tensors, ctx.rows, ctx.padding_idx)
    return None, grad_values, *[None] * 7


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, *tensors, rows, padding_idx = inputs
    ctx.save_for_backward(*tensors)
    ctx.rows, ctx.width, ctx.padding_idx = rows, grad_output.shape[-1], padding_idx


def _double_backward(ctx: Any, grad_grad_values: Tensor) -> tuple[Tensor | None, ...]:
    ids, *pattern = ctx.saved_tensors
    rows = operator(ids, grad_grad_values, *pattern, ctx.rows, ctx.width)
    if ctx.padding_idx is not None:
        rows = rows.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0)
    return rows, *[None] * 7


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
    check_sparse("sparse_embedding", weight)
    checks.tensor("sparse_embedding", "ids", ids)
    checks.dtype("sparse_embedding", "ids", ids, (torch.int64, torch.int32))
    checks.device("sparse_embedding", "ids", ids, weight.device, "weight")
    if padding_idx is not None:
        checks.row("sparse_embedding", "padding_idx", padding_idx, tuple(weight.shape))
        padding_idx %= weight.shape[0]
    rows: Tensor = operator(ids, weight.values, *weight.pattern, *weight.shape, padding_idx)
    return rows
