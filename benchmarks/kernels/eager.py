"""The operations with gradients in plain torch: the definitions, and the float mask that is commonly written."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tamt_kernels import reference


class MaskWeight(torch.autograd.Function):
    """The definition of ``mask_weight`` and of its straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, value: Tensor, cut: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        return reference.mask_weight(weight, score, value, cut, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return None, reference.ste_backward(grad, weight, torch.float32), None, None, None


class MaskedEmbedding(torch.autograd.Function):
    """The definition of ``masked_embedding`` and of its gradient."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, score: Tensor, value: Tensor, cut: Tensor) -> Tensor:
        ctx.save_for_backward(ids, weight)
        return reference.masked_embedding(ids, weight, score, value, cut)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight = ctx.saved_tensors
        return None, None, reference.masked_embedding_backward(grad, ids, weight, None, torch.float32), None, None


class Cosine(torch.autograd.Function):
    """The definition of ``cosine`` and of its gradient."""

    @staticmethod
    def forward(ctx: Any, constant: Tensor, trained: Tensor) -> Tensor:
        ctx.save_for_backward(constant, trained)
        return reference.cosine(constant, trained)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, reference.cosine_backward(grad, *ctx.saved_tensors)


class _FloatMask(torch.autograd.Function):
    """1 where a score is at least the threshold, ties all kept; its gradient goes through to the score unchanged."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        return (score >= value).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.to(torch.float32), None, None


def mask_weight(weight: Tensor, score: Tensor, value: Tensor, cut: Tensor, dtype: torch.dtype) -> Tensor:
    masked: Tensor = MaskWeight.apply(weight, score, value, cut, dtype)
    return masked


def masked_linear(x: Tensor, weight: Tensor, score: Tensor, value: Tensor, cut: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, mask_weight(weight, score, value, cut, weight.dtype), bias)


def masked_embedding(ids: Tensor, weight: Tensor, score: Tensor, value: Tensor, cut: Tensor) -> Tensor:
    rows: Tensor = MaskedEmbedding.apply(ids, weight, score, value, cut)
    return rows


def cosine(constant: Tensor, trained: Tensor) -> Tensor:
    found: Tensor = Cosine.apply(constant, trained)
    return found


def float_mask_weight(weight: Tensor, score: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """W ⊙ m as most would write it, with a mask of floats."""
    mask: Tensor = _FloatMask.apply(score, value, weight.dtype)
    return (weight * mask).to(dtype)
