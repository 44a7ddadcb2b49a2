"""A linear layer over the kept entries of a weight."""

import math
from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate
from tamt_kernels.ops.pack_sparse import SparseWeight, check_sparse


def _fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _fake_backward_x(
    grad_output: Tensor, values: Tensor, columns: Tensor, order: Tensor, counts: Tensor, starts: Tensor, width: int
) -> Tensor:
    return grad_output.new_empty((*grad_output.shape[:-1], width))


def _fake_backward_values(
    grad_output: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(columns.shape, dtype=dtype, device=columns.device)


PATTERN = "Tensor columns, Tensor order, Tensor counts, Tensor starts"

operator = define(
    f"sparse_linear(Tensor x, Tensor values, {PATTERN}, SymInt rows, Tensor? bias=None) -> Tensor",
    eager=reference.sparse_linear,
    fake=_fake,
)
_backward_x = define(
    f"sparse_linear_backward_x(Tensor grad_output, Tensor values, {PATTERN}, SymInt width) -> Tensor",
    eager=reference.sparse_linear_backward_x,
    fake=_fake_backward_x,
)
_backward_values = define(
    f"sparse_linear_backward_values(Tensor grad_output, Tensor x, {PATTERN}, ScalarType dtype) -> Tensor",
    eager=reference.sparse_linear_backward_values,
    fake=_fake_backward_values,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _rows, bias = inputs
    ctx.save_for_backward(*tensors)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _backward_x(grad_output, values, *pattern, x.shape[-1])
    if ctx.needs_input_grad[1]:
        grad_values = _backward_values(grad_output, x, *pattern, values.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[7]:
        rows = grad_output.reshape(math.prod(grad_output.shape[:-1]), grad_output.shape[-1])
        grad_bias = rows.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, grad_values, None, None, None, None, None, grad_bias


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _width_or_dtype = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_backward_x(ctx: Any, grad_grad_x: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, values, *pattern = ctx.saved_tensors
    return (
        operator(grad_grad_x, values, *pattern, grad_output.shape[-1]) if ctx.needs_input_grad[0] else None,
        _backward_values(grad_output, grad_grad_x, *pattern, values.dtype) if ctx.needs_input_grad[1] else None,
        *[None] * 5,
    )


def _backward_of_backward_values(ctx: Any, grad_grad_values: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, x, *pattern = ctx.saved_tensors
    return (
        operator(x, grad_grad_values, *pattern, grad_output.shape[-1]) if ctx.needs_input_grad[0] else None,
        _backward_x(grad_output, grad_grad_values, *pattern, x.shape[-1]) if ctx.needs_input_grad[1] else None,
        *[None] * 5,
    )


differentiate("sparse_linear", _backward, _save)
differentiate("sparse_linear_backward_x", _backward_of_backward_x, _save_backward)
differentiate("sparse_linear_backward_values", _backward_of_backward_values, _save_backward)


def sparse_linear(x: Tensor, weight: SparseWeight, bias: Tensor | None = None) -> Tensor:
    """Y = X Wᵀ + b of a matrix of which only the kept entries are stored.

    Products are those of the type of W's values, sums are float32: with float32 values the result is that of the dense
    layer, to rounding. With bfloat16 values a processor may take subnormal numbers for 0. Pruned entries are not
    multiplied: where x is NaN or infinite, the outputs of rows that do not keep that column stay finite.

    Differentiable any number of times, in x, in the bias and, of the kept entries alone, in ``weight.values``.

    Args:
        x: [..., in]; float32, float16 or bfloat16.
        weight: W, as ``pack_sparse`` makes it.
        bias: [out], or None.

    Returns:
        [..., out], in the type of x.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
    """
    check_sparse("sparse_linear", weight)
    check_input("sparse_linear", x, weight.shape[1], weight.device)
    if bias is not None:
        checks.matrix("sparse_linear", "bias", bias)
        checks.shape("sparse_linear", "bias", bias, (weight.shape[0],), "an entry for each row of weight")
        checks.device("sparse_linear", "bias", bias, weight.device, "weight")
    arguments = x, weight.values, *weight.pattern, weight.shape[0], bias
    y: Tensor
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        y = operator(*arguments)
    else:
        with torch._C._AutoDispatchBelowAutograd():  # of which an operator's takes 6 µs, in Python
            y = operator(*arguments)
    return y


def check_input(operation: str, x: Tensor, width: int, device: torch.device) -> None:
    """Raises TypeError or ValueError if x cannot be multiplied by a weight with ``width`` columns."""
    checks.matrix(operation, "x", x)
    if x.dim() == 0 or x.shape[-1] != width:
        raise ValueError(
            f"{operation}: x has shape {tuple(x.shape)} but must have {width} entries in a row, as weight has"
        )
    checks.device(operation, "x", x, device, "weight")
