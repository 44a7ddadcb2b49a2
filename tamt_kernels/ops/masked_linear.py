"""A linear layer over a masked weight."""

import math
from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks, dispatch
from tamt_kernels.backend.choices import size_class
from tamt_kernels.backend.library import define, differentiate, refuse_double_backward
from tamt_kernels.ops.linear import linear
from tamt_kernels.ops.mask_weight import operator as _mask_weight
from tamt_kernels.ops.ste_backward import operator as _ste_backward


def _fake(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None = None,
    absolute: bool = False,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_backward_x(
    grad_output: Tensor, weight: Tensor, score: Tensor, value: Tensor, cut: Tensor, absolute: bool = False
) -> Tensor:
    return grad_output.new_empty((*grad_output.shape[:-1], weight.shape[1]))


def _fake_backward_score(grad_output: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, score, value, cut, bias, absolute = inputs
    ctx.save_for_backward(x, weight, score, value, cut)
    ctx.absolute = absolute
    ctx.bias_dtype = bias.dtype if bias is not None else None


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, score, value, cut = ctx.saved_tensors
    grad_x = grad_score = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _backward_x(grad_output, weight, score, value, cut, ctx.absolute)
    if ctx.needs_input_grad[2]:
        grad_score = _backward_score(grad_output, x, weight, score.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[5]:
        rows = grad_output.reshape(math.prod(grad_output.shape[:-1]), weight.shape[0])
        grad_bias = rows.sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, None, grad_score, None, None, grad_bias, None


def _save_backward_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.absolute = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_backward_x(ctx: Any, grad_grad_x: Tensor) -> tuple[Tensor | None, ...]:
    """dX is a product like Y, so it can be differentiated again."""
    grad_output, weight, score, value, cut = ctx.saved_tensors
    grad_grad_output = grad_score = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = _matmul(grad_grad_x, weight, score, value, cut, None, ctx.absolute)
    if ctx.needs_input_grad[2]:
        grad_score = _backward_score(grad_output, grad_grad_x, weight, score.dtype)
    return grad_grad_output, None, grad_score, None, None, None


def _by_mask_weight(*arguments: Any) -> Tensor:
    return reference.masked_matmul(*arguments, mask_weight=_mask_weight)


def _backward_x_by_mask_weight(*arguments: Any) -> Tensor:
    return reference.masked_matmul_backward_x(*arguments, mask_weight=_mask_weight)


def _backward_score_by_ste_backward(*arguments: Any) -> Tensor:
    return reference.masked_matmul_backward_score(*arguments, ste_backward=_ste_backward)


_matmul = define(
    "masked_matmul(Tensor x, Tensor weight, Tensor score, Tensor value, Tensor cut, Tensor? bias=None, "
    "bool absolute=False) -> Tensor",
    eager=_by_mask_weight,
    fake=_fake,
    triton="masked_linear",
    composed_of="mask_weight",
)
_backward_x = define(
    "masked_matmul_backward_x(Tensor grad_output, Tensor weight, Tensor score, Tensor value, Tensor cut, "
    "bool absolute=False) -> Tensor",
    eager=_backward_x_by_mask_weight,
    fake=_fake_backward_x,
    triton="masked_linear",
    composed_of="mask_weight",
)
_backward_score = define(
    "masked_matmul_backward_score(Tensor grad_output, Tensor x, Tensor weight, ScalarType dtype) -> Tensor",
    eager=_backward_score_by_ste_backward,
    fake=_fake_backward_score,
    triton="masked_linear",
    composed_of="ste_backward",
)
differentiate("masked_matmul", _backward, _save)
differentiate("masked_matmul_backward_x", _backward_of_backward_x, _save_backward_x)
differentiate("masked_matmul_backward_score", refuse_double_backward)


def _few_rows(device: str, dtype: str) -> tuple[int, ...]:
    return dispatch.few_rows(torch.device(device), getattr(torch, dtype.removeprefix("torch.")))


# torch.compile may treat the answer as a constant, as a machine's GPU and kernels do not change. This line is all that
# torch.compiler.assume_constant_result does, but without the import of the compiler and of Triton.
_few_rows._dynamo_marked_constant = True  # type: ignore[attr-defined]


def masked_linear(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None = None,
    *,
    ranking: checks.Ranking = "signed",
) -> Tensor:
    """Y = X (W ⊙ m)ᵀ + b (section 3.4.1).

    The gradients are dX = dY (W ⊙ m) and, straight through, dS = (dYᵀ X) ⊙ W (eq. 4). dX can be differentiated again;
    to differentiate dS raises a RuntimeError.

    It runs ``mask_weight`` and torch's matrix product. For up to 64 rows, or as many as ``autotune`` measured, a GPU
    from sm_80 on runs a product that masks W as it is read. For more rows that would be slower. Under autocast W ⊙ m is
    written in autocast's dtype, without a second pass.

    Args:
        x: [..., in]; of the weight's dtype unless autocast is on.
        weight: W [out, in], frozen; float32, float16 or bfloat16.
        score: S [out, in]; float32, float16 or bfloat16.
        value, cut: the threshold, as in ``mask_weight``.
        bias: [out] or None; of the weight's dtype unless autocast is on.
        ranking: as given to ``topk_threshold``.

    Returns:
        [..., out], of the weight's dtype; under autocast, of autocast's.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.matrix("masked_linear", "x", x)
    checks.weight_and_score("masked_linear", weight, score)
    checks.dimensions("masked_linear", "weight", weight, 2)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"masked_linear: x has shape {tuple(x.shape)} but must have (..., {weight.shape[1]}), "
            f"as weight has shape {tuple(weight.shape)}"
        )
    checks.device("masked_linear", "x", x, weight.device, "weight")
    if bias is not None:
        checks.matrix("masked_linear", "bias", bias)
        checks.shape("masked_linear", "bias", bias, (weight.shape[0],), "an entry for each row of weight")
        checks.device("masked_linear", "bias", bias, weight.device, "weight")
    checks.threshold("masked_linear", value, cut, score.device)
    absolute = checks.absolute("masked_linear", ranking)
    dtype = weight.dtype
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # meta tensors have no autocast
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        checks.dtype("masked_linear", "x", x, (dtype,))
        if bias is not None:
            checks.dtype("masked_linear", "bias", bias, (dtype,))
    few_rows = _few_rows(str(x.device), str(dtype))[size_class(weight.numel())]
    if 0 < x.numel() <= few_rows * x.shape[-1]:
        product: Tensor = _matmul(x.to(dtype), weight, score, value, cut, bias, absolute)
        return product
    return linear(x, _mask_weight(weight, score, value, cut, dtype, absolute), bias)
