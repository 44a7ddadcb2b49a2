"""Dropout for training on a CPU, where torch draws its numbers one by one on one thread.

They take torch 11 ns an entry, 8 % of a step of BERT-base. Here a random integer of 64 bits serves four entries, which
takes 4 ns with all that belongs to it, and the backward pass is left a byte an entry, not a float. On other devices
torch's own dropout runs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "tamt_sdpa"
"""The name under which transformers knows `attention`."""


def drop(x: Tensor, p: float) -> Tensor:
    """Zero each entry with probability `p`, to a multiple of 2⁻¹⁶, and divide the others by 1 − p.

    The draws are those of torch's global generator. On other devices, and under torch.compile, torch's own
    dropout runs.

    Args:
        x: any shape, of a floating-point type.
        p: from 0 to 1.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiled model has generators of its own
        return nn.functional.dropout(x, p)
    if p == 0:
        return x
    dropped: Tensor = _Dropout.apply(x, p)
    return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        fates = max(round(p * 2**16), 1)  # of 2^16 as many zero an entry
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) > fates - 1 - 2**15
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / max(2**16 - fates, 1)
        return _keep(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _keep(grads[0], kept, ctx.scale), None


def _keep(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    # Three passes over floats: products of a float and a bool, or a choice by it, are not vectorised and take longer.
    return kept.to(x.dtype).mul_(scale).mul_(x)


class Dropout(nn.Dropout):
    """`nn.Dropout` by `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        """`drop` of `x` [any shape] in training, `x` itself in evaluation."""
        return drop(x, self.p) if self.training else x


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
    """Scaled dot-product attention, torch's own but for dropout on a CPU, where torch's takes no fused path anyway.

    Args:
        module: the layer.
        query, key, value: [batch, heads, length, width].
        attention_mask: bool, true where attended to, [batch, 1, length, length]; None for everywhere.
        dropout: probability, 0 in evaluation.
        scaling: of the products; 1 / √width by default.

    Returns:
        [batch, length, heads, width], and None for the weights.
    """
    as_torch = dropout == 0 or query.device.type != "cpu" or torch.compiler.is_compiling()
    if as_torch or options.get("position_bias") is not None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    products = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        products = products.masked_fill(~attention_mask, torch.finfo(products.dtype).min)
    weights = drop(products.softmax(-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use_fast_dropout(model: PreTrainedModel) -> None:
    """Let a model drop by this module, in its layers and, where its attention is torch's, in that too."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
