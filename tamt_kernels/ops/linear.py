"""A dense linear layer whose products are computed by the fastest library."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from tamt_kernels import reference
from tamt_kernels.backend import onednn, product_library
from tamt_kernels.backend.choices import size_class
from tamt_kernels.backend.library import LIBRARY, define, differentiate


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_backward_x(grad_output: Tensor, weight: Tensor) -> Tensor:
    return grad_output.new_empty((*grad_output.shape[:-1], weight.shape[1]))


def _fake_backward_weight(grad_output: Tensor, x: Tensor) -> Tensor:
    return grad_output.new_empty((grad_output.shape[-1], x.shape[-1]))


def _by_onednn_backward_x(grad_output: Tensor, weight: Tensor) -> Tensor:
    return onednn.linear(grad_output, weight.t())


def _by_onednn_backward_weight(grad_output: Tensor, x: Tensor) -> Tensor:
    return onednn.linear(grad_output.flatten(0, -2).t(), x.flatten(0, -2).t())


def _by_onednn_copies(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return onednn.linear(x.contiguous(), weight.contiguous(), bias)


def _by_onednn_copies_backward_x(grad_output: Tensor, weight: Tensor) -> Tensor:
    return onednn.linear(grad_output.contiguous(), weight.t().contiguous())


def _by_onednn_copies_backward_weight(grad_output: Tensor, x: Tensor) -> Tensor:
    return onednn.linear(grad_output.flatten(0, -2).t().contiguous(), x.flatten(0, -2).t().contiguous())


_linear = define(
    "linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    eager=reference.linear,
    fake=_fake,
    onednn={"onednn": onednn.linear, "onednn_copies": _by_onednn_copies},
)
_backward_x = define(
    "linear_backward_x(Tensor grad_output, Tensor weight) -> Tensor",
    eager=reference.linear_backward_x,
    fake=_fake_backward_x,
    onednn={"onednn": _by_onednn_backward_x, "onednn_copies": _by_onednn_copies_backward_x},
)
_backward_weight = define(
    "linear_backward_weight(Tensor grad_output, Tensor x) -> Tensor",
    eager=reference.linear_backward_weight,
    fake=_fake_backward_weight,
    onednn={"onednn": _by_onednn_backward_weight, "onednn_copies": _by_onednn_copies_backward_weight},
)


def _backend(name: str, entries: int, *operands: Tensor) -> str:
    """The backend for a product of these operands with a W of ``entries``: torch's own unless they are float32."""
    if any(operand.dtype != torch.float32 or operand.numel() == 0 for operand in operands):
        return "eager"
    return product_library.chosen()[name][size_class(entries)]


def _run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return product_library.kernel("linear", _backend("linear", weight.numel(), x, weight))(x, weight, bias)


def _run_backward_x(grad_output: Tensor, weight: Tensor) -> Tensor:
    backend = _backend("linear_backward_x", weight.numel(), grad_output, weight)
    return product_library.kernel("linear_backward_x", backend)(grad_output, weight)


def _run_backward_weight(grad_output: Tensor, x: Tensor) -> Tensor:
    backend = _backend("linear_backward_weight", grad_output.shape[-1] * x.shape[-1], grad_output, x)
    return product_library.kernel("linear_backward_weight", backend)(grad_output, x)


LIBRARY.impl("linear", _run, "CPU")
LIBRARY.impl("linear_backward_x", _run_backward_x, "CPU")
LIBRARY.impl("linear_backward_weight", _run_backward_weight, "CPU")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    return (
        _backward_x(grad_output, weight) if ctx.needs_input_grad[0] else None,
        _backward_weight(grad_output, x) if ctx.needs_input_grad[1] else None,
        grad_output.flatten(0, -2).sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None,
    )


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_of_backward_x(ctx: Any, grad_grad_x: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, weight = ctx.saved_tensors
    return (
        _linear(grad_grad_x, weight) if ctx.needs_input_grad[0] else None,
        _backward_weight(grad_output, grad_grad_x) if ctx.needs_input_grad[1] else None,
    )


def _backward_of_backward_weight(ctx: Any, grad_grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, x = ctx.saved_tensors
    return (
        _linear(x, grad_grad_weight) if ctx.needs_input_grad[0] else None,
        _backward_x(grad_output, grad_grad_weight) if ctx.needs_input_grad[1] else None,
    )


differentiate("linear", _backward, _save)
differentiate("linear_backward_x", _backward_of_backward_x, _save_operands)
differentiate("linear_backward_weight", _backward_of_backward_weight, _save_operands)


def _only_torch(*operands: Tensor) -> bool:
    """Whether only torch's own function is available: other devices and dtypes, autocast, and compiled code."""
    if torch.compiler.is_compiling() or any(
        operand.device.type != "cpu" or operand.dtype != torch.float32 for operand in operands
    ):
        return True
    return torch.is_autocast_enabled("cpu") or product_library.is_only_torch()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = X Wᵀ + b, as ``torch.nn.functional.linear``, by the library that is fastest on this CPU.

    There is a choice only for float32 products on a CPU (``tamt_kernels.backend.product_library``). Under autocast, and
    in code that torch.compile compiles, torch's own product runs. Results of two libraries differ only by rounding.
    Differentiable any number of times.

    Args:
        x: [..., in].
        weight: W [out, in], of x's dtype.
        bias: [out] or None.

    Returns:
        [..., out].
    """
    operands = (x, weight) if bias is None else (x, weight, bias)
    fits = x.dim() > 1 and weight.dim() == 2 and x.shape[-1] == weight.shape[-1]
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    if not fits or x.numel() == 0 or _only_torch(*operands):
        return F.linear(x, weight, bias)  # which says what does not fit
    # Rows, because otherwise the operator would return a view, which could not be changed in place.
    rows: Tensor = _linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows if x.dim() == 2 else rows.view(*x.shape[:-1], weight.shape[0])


def linear_backward_x(grad_output: Tensor, weight: Tensor) -> Tensor:
    """dX = dY W, the gradient of ``linear`` for its input, by the library that is fastest on this CPU.

    Args:
        grad_output: dY [..., out].
        weight: W [out, in], of dY's dtype.

    Returns:
        [..., in].
    """
    if _only_torch(grad_output, weight):
        return reference.linear_backward_x(grad_output, weight)
    grad_x: Tensor = _backward_x(grad_output, weight)
    return grad_x


def linear_backward_weight(grad_output: Tensor, x: Tensor) -> Tensor:
    """dW = dYᵀ X, the gradient of ``linear`` for its weight, by the library that is fastest on this CPU.

    Args:
        grad_output: dY [..., out].
        x: X [..., in], of dY's dtype.

    Returns:
        [out, in].
    """
    if _only_torch(grad_output, x):
        return reference.linear_backward_weight(grad_output, x)
    grad_weight: Tensor = _backward_weight(grad_output, x)
    return grad_weight


def overwrite_linear_backward_weight(out: Tensor, grad_output: Tensor, x: Tensor) -> None:
    """Write dW = dYᵀ X to ``out``. oneDNN allocates its results, so ``out`` takes over the memory of the result.

    Args:
        out: [out, in], contiguous; must not share its memory with other tensors.
        grad_output: dY [..., out].
        x: X [..., in], of dY's dtype.
    """
    if _only_torch(grad_output, x):
        torch.mm(grad_output.flatten(0, -2).t(), x.flatten(0, -2), out=out.detach())
    else:
        out.data = _backward_weight(grad_output, x)
        increment_version(out)  # a graph that saved the old content must not go on


class Linear(nn.Linear):
    """``nn.Linear`` that computes by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """Y [..., out] for an input [..., in]."""
        return linear(input, self.weight, self.bias)


def use_fast_products(model: nn.Module) -> None:
    """Let every ``nn.Linear`` of a model, but not its subclasses, compute by ``linear``, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
