"""The straight-through gradient of a score."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate, refuse_double_backward
from tamt_kernels.reference import group_offsets, ungrouped


def _fake(grad_masked_weight: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or torch.promote_types(grad_masked_weight.dtype, weight.dtype)
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _fake_into(
    grad_score: Tensor, grad_masked_weight: Tensor, weight: Tensor, add: bool = True, square: bool = False
) -> Tensor:
    return torch.empty(() if square else 0, dtype=torch.float32, device=weight.device)


operator = define(
    "ste_backward(Tensor grad_masked_weight, Tensor weight, ScalarType? dtype=None) -> Tensor",
    eager=reference.ste_backward,
    fake=_fake,
)
differentiate("ste_backward", refuse_double_backward)
_into = define(
    "ste_backward_into(Tensor(a!) grad_score, Tensor grad_masked_weight, Tensor weight, bool add=True, "
    "bool square=False) -> Tensor",
    eager=reference.ste_backward_into,
    fake=_fake_into,
)


def differentiate_straight_through(name: str) -> None:
    """Give an operator of six arguments, W, S and four settings, whose result is W ⊙ m, its gradient in S (eq. 4)."""
    differentiate(name, _to_score, _keep_weight)


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, score, *_ = inputs
    ctx.save_for_backward(weight)
    ctx.score_dtype = score.dtype


def _to_score(ctx: Any, grad_masked_weight: Tensor) -> tuple[Tensor | None, ...]:
    (weight,) = ctx.saved_tensors
    return None, operator(grad_masked_weight, weight, ctx.score_dtype), None, None, None, None


def _composed(*arguments: Any) -> Tensor:
    return reference.ste_backward_all(*arguments, ste_backward=operator)


def _fake_all(grads: list[Tensor], weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    _offsets, total = group_offsets([weight.numel() for weight in weights])
    return torch.empty(total, dtype=dtype, device=weights[0].device)


_all = define(
    "ste_backward_all(Tensor[] grads, Tensor[] weights, ScalarType dtype) -> Tensor",
    eager=_composed,
    fake=_fake_all,
    triton="ste_backward",
    composed_of="ste_backward",
)
differentiate("ste_backward_all", refuse_double_backward)


@overload
def ste_backward(
    grad_masked_weight: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None = None,
    *,
    add_to: Tensor | None = None,
    squared_norm: Literal[False] = False,
) -> Tensor: ...


@overload
def ste_backward(
    grad_masked_weight: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None = None,
    *,
    add_to: Tensor | None = None,
    squared_norm: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def ste_backward(
    grad_masked_weight: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None = None,
    *,
    add_to: Tensor | None = None,
    squared_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """dS = d(W ⊙ m) ⊙ W: the gradient of the score, straight through the binarization (eq. 4).

    As W is frozen, gradients of several backward passes can be summed first and then multiplied by W once.

    Args:
        grad_masked_weight: the gradient of the masked weight; float32, float16 or bfloat16.
        weight: W, of the same shape and on the same device; float32, float16 or bfloat16.
        dtype: dtype of the result; by default that of ``add_to``, or the dtype to which torch promotes the two.
        add_to: a gradient of the same shape, such as ``score.grad``, to which the product is added in place.
        squared_norm: whether to return Σ dS² too, from the same pass. The square root of its sum over all matrices is
            the norm that ``torch.nn.utils.clip_grad_norm_`` clips.

    Returns:
        The product, contiguous, computed in float32 and rounded once to ``dtype``; or ``add_to``, with the product
        added in float32 and rounded once. It cannot be differentiated again. With ``squared_norm`` a pair of this and
        the sum of the squares of its rounded entries: float32, 0-dim, summed in float64 in an order that does not
        depend on the number of threads.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.matrix("ste_backward", "grad_masked_weight", grad_masked_weight)
    checks.matrix("ste_backward", "weight", weight)
    checks.shape("ste_backward", "grad_masked_weight", grad_masked_weight, tuple(weight.shape), "the shape of weight")
    checks.device("ste_backward", "grad_masked_weight", grad_masked_weight, weight.device, "weight")
    checks.result_dtype("ste_backward", dtype)
    if add_to is None and not squared_norm:
        product: Tensor = operator(grad_masked_weight, weight, dtype)
        return product
    if add_to is None:
        dtype = dtype or torch.promote_types(grad_masked_weight.dtype, weight.dtype)
        grad_score = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    else:
        checks.matrix("ste_backward", "add_to", add_to)
        checks.shape("ste_backward", "add_to", add_to, tuple(weight.shape), "the shape of weight")
        checks.device("ste_backward", "add_to", add_to, weight.device, "weight")
        checks.dtype("ste_backward", "add_to", add_to, (dtype or add_to.dtype,))
        grad_score = add_to
    squares = _into(grad_score.detach(), grad_masked_weight.detach(), weight.detach(), add_to is not None, squared_norm)
    return (grad_score, squares) if squared_norm else grad_score


def ste_backward_all(
    grads: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """``ste_backward`` for every matrix, dS = d(W ⊙ m) ⊙ W (eq. 4). On a GPU it takes two launches, one for addresses.

    Args:
        grads: M gradients of masked weights, of any shape on one device; float32, float16 or bfloat16.
        weights: M tensors W, each of its gradient's shape; float32, float16 or bfloat16.
        dtype: dtype of the results; by default that to which torch promotes the first gradient and its weight.

    Returns:
        The products, each of its weight's shape and rounded once to ``dtype``. They cannot be differentiated again.
        They are views of one flat tensor: a reference to one keeps all of them in memory.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or length, or more than 2**31 entries.
    """
    grads, weights = list(grads), list(weights)
    if len(weights) != len(grads):
        raise ValueError(
            f"ste_backward_all: weights has length {len(weights)} but must have {len(grads)}, as grads has"
        )
    for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
        checks.matrix("ste_backward_all", f"grads[{i}]", grad)
        checks.matrix("ste_backward_all", f"weights[{i}]", weight)
        reason = f"the shape of weights[{i}]"
        checks.shape("ste_backward_all", f"grads[{i}]", grad, tuple(weight.shape), reason)
        checks.device("ste_backward_all", f"grads[{i}]", grad, weight.device, f"weights[{i}]")
        checks.device("ste_backward_all", f"weights[{i}]", weight, weights[0].device, "weights[0]")
    checks.result_dtype("ste_backward_all", dtype)
    if not weights:
        return []
    return products_of(grads, weights, dtype or torch.promote_types(grads[0].dtype, weights[0].dtype))


def products_of(grads: list[Tensor], weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``ste_backward_all`` without checks."""
    return ungrouped(_all(grads, weights, dtype), weights)
