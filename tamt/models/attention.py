"""Attention for training on a CPU with dropout or in half precision, where torch has no fast path.

torch has no fused attention with dropout there. Without dropout its backward pass in bfloat16 is slow: on one core of
an Emerald Rapids, both passes over 8 rows of 12 heads, 128 tokens and 32 numbers take 40 ms, and 11 ms here. A step of
mask training of the demo's model takes 0.45 s instead of 0.66 s.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tamt.models.dropout import draw

ATTENTION = "tamt_sdpa"
"""The name under which transformers knows `attention`."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention: torch's own, except in training on a CPU, with dropout or in half precision.

    On a CPU, too, torch's own runs if the mask is not bool, the types differ, heads share their keys, or tokens attend
    only to those before them without a mask that says so.

    Args:
        module: the layer; its `is_causal` counts if `options` have none, as in transformers.
        query, key, value: [batch, heads, length, width].
        attention_mask: bool, true where attended to, [batch, 1, length, length]; None for everywhere.
        dropout: probability, 0 in evaluation.
        scaling: of the products; 1 / √width by default.

    Returns:
        [batch, length, heads, width], and None for the weights.
    """
    in_half = query.dtype in (torch.bfloat16, torch.float16) and torch.is_grad_enabled() and query.requires_grad
    as_torch = not (dropout or in_half) or query.device.type != "cpu" or torch.compiler.is_compiling()
    as_torch |= options.get("position_bias") is not None
    as_torch |= attention_mask is not None and attention_mask.dtype != torch.bool
    causal = options.get("is_causal")
    as_torch |= attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal)
    as_torch |= not query.dtype == key.dtype == value.dtype or query.shape[1] != key.shape[1]
    if as_torch:
        outcome: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return outcome
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):  # as it would be in the backward pass
        output: Tensor = _Attention.apply(query, key, value, attention_mask, scaling, dropout)
    return output, None


class _Attention(torch.autograd.Function):
    """Attention that computes its weights again in the backward pass, for which dropout keeps one byte per weight."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, p: float
    ) -> Tensor:
        heads = query.shape[:2]
        flat_query, flat_key, flat_value = (states.flatten(0, 1) for states in (query, key, value))
        if p == 0:  # torch is slow in the backward pass alone
            output = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
            kept, ctx.scale = None, 1.0
        else:
            weights = _weights(flat_query, flat_key, mask, scaling)
            kept, ctx.scale = draw(weights.shape, p)
            output = _product(kept.to(weights.dtype).mul_(weights), flat_value, ctx.scale).unflatten(0, heads)
        output = output.transpose(1, 2).contiguous()
        ctx.save_for_backward(flat_query, flat_key, flat_value, mask, kept, output)
        ctx.scaling = scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, kept, output = ctx.saved_tensors
        heads = grads[0].shape[0], grads[0].shape[2]
        grad = grads[0].transpose(1, 2).flatten(0, 1)
        weights = _weights(query, key, mask, ctx.scaling)
        grad_weights, kept_weights = _product(grad, value.transpose(1, 2), ctx.scale), weights
        if kept is not None:
            factors = kept.to(weights.dtype)
            grad_weights.mul_(factors)
            kept_weights = factors.mul_(weights)
        grad_value = _product(kept_weights.transpose(1, 2), grad, ctx.scale)
        # What softmax's backward takes off, Σ weight · its gradient, is the output · its gradient, which is shorter.
        mean = torch.linalg.vecdot(output, grads[0]).transpose(1, 2).flatten(0, 1).unsqueeze(-1)
        grad_products = grad_weights.sub_(mean).mul_(weights)
        grad_query = _product(grad_products, key, ctx.scaling)
        grad_key = _product(grad_products.transpose(1, 2), query, ctx.scaling)
        return *(grad.unflatten(0, heads) for grad in (grad_query, grad_key, grad_value)), None, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(scaling · query keyᵀ) where `mask` is true, [batch · heads, length, length]."""
    products = _product(query, key.transpose(1, 2), scaling)
    if mask is not None:  # adding is vectorised for every type, filling is not
        bias = products.new_zeros(()).masked_fill(~mask, torch.finfo(products.dtype).min / 2)
        products.unflatten(0, (len(mask), -1)).add_(bias)
    return products.softmax(-1)


def _product(first: Tensor, second: Tensor, factor: float) -> Tensor:
    """factor · first second, [batch, rows, columns] each."""
    return torch.baddbmm(first.new_empty(()), first, second, beta=0, alpha=factor)


def attention_mask(*arguments: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """transformers' mask of `attention`, or None where all tokens are attended to.

    On a GPU that is where no mask is given, because looking for padding would wait for the device. While a CUDA graph
    is recorded, transformers' own function turns no mask into a mask of ones, which no fused attention takes: a step
    of BERT-base at 16 × 512 tokens then took 44 ms on an H200 instead of 18.

    Args:
        arguments: those of `transformers.masking_utils.sdpa_mask`.
        attention_mask: true, or one, where a token is not padding, [batch, length].
        options: further arguments.

    Returns:
        bool, [batch, 1, length, length].
    """
    bidirectional = options.pop("allow_is_bidirectional_skip", False)
    if bidirectional and attention_mask is None:
        return None
    on_gpu = attention_mask is not None and attention_mask.device.type != "cpu"
    mask: Tensor | None = sdpa_mask(
        *arguments, attention_mask=attention_mask, allow_is_bidirectional_skip=bidirectional and not on_gpu, **options
    )
    return mask


def use_fast_attention(model: PreTrainedModel) -> None:
    """Let a model whose attention is torch's use `attention`, which transformers then knows as `ATTENTION`."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, attention_mask)
        model.set_attn_implementation(ATTENTION)
