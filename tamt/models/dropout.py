"""Dropout for training on a CPU, where torch draws one number per entry on one thread.

That takes 11 ns per entry, 8 % of a step of BERT-base. Here a random integer of 64 bits serves four entries, 4 ns per
entry in all, and the backward pass keeps a byte per entry instead of a float. On other devices torch's own dropout
runs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "tamt_sdpa"
"""The name under which transformers knows `attention`."""


def without_dropout(config: PreTrainedConfig) -> dict[str, float]:
    """The entries of a configuration that are rates of dropout, all 0; families call them differently."""
    return {name: 0.0 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}


def drop(x: Tensor, p: float) -> Tensor:
    """Zero each entry with probability `p`, to a multiple of 2⁻¹⁶, and divide the others by 1 − p.

    The draws are those of torch's global generator. On other devices, and under torch.compile, torch's own
    dropout runs.

    Args:
        x: any shape, of a floating-point type.
        p: from 0 to 1.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiled model has generators of its own
        return nn.functional.dropout(x, p)
    dropped: Tensor = _Dropout.apply(x, p)
    return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept, ctx.scale = _draw(x.shape, p)
        ctx.save_for_backward(kept)
        return _keep(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _keep(grads[0], kept, ctx.scale), None


def _draw(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Which entries are kept, uint8, 1 or 0, and the factor of those that are."""
    zeroing = max(round(p * 2**16), 1)  # of the 2^16 values of an entry's number, those that zero it
    entries = shape.numel()
    drawn = torch.empty(-(-entries // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    # Not bool: torch takes five times as long to compare into it and to convert it to floats.
    kept = drawn[:entries].view(shape).gt_(zeroing - 1 - 2**15).to(torch.uint8)
    return kept, 2**16 / max(2**16 - zeroing, 1)


def _keep(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    # Three passes over floats: products of a float and a byte are not vectorised and take longer.
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
    """Scaled dot-product attention: torch's own, except with dropout on a CPU, where torch has no fused path.

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
    as_torch = dropout == 0 or query.device.type != "cpu" or torch.compiler.is_compiling()
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
    """Attention with dropout that keeps one byte per weight for its backward pass, and computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, p: float
    ) -> Tensor:
        heads = query.shape[:2]
        query, key, value = (states.flatten(0, 1) for states in (query, key, value))
        weights = _weights(query, key, mask, scaling)
        kept, ctx.scale = _draw(weights.shape, p)
        output = _product(kept.to(weights.dtype).mul_(weights), value, ctx.scale)
        output = output.unflatten(0, heads).transpose(1, 2).contiguous()
        ctx.save_for_backward(query, key, value, mask, kept, output)
        ctx.scaling = scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, kept, output = ctx.saved_tensors
        heads = grads[0].shape[0], grads[0].shape[2]
        grad = grads[0].transpose(1, 2).flatten(0, 1)
        weights = _weights(query, key, mask, ctx.scaling)
        factors = kept.to(weights.dtype)
        grad_weights = _product(grad, value.transpose(1, 2), ctx.scale).mul_(factors)
        grad_value = _product(factors.mul_(weights).transpose(1, 2), grad, ctx.scale)
        # What softmax's backward takes off, Σ weight · its gradient, is the output · its gradient, which is shorter.
        mean = torch.linalg.vecdot(output, grads[0]).transpose(1, 2).flatten(0, 1).unsqueeze(-1)
        grad_products = grad_weights.sub_(mean).mul_(weights)
        grad_query = _product(grad_products, key, ctx.scaling)
        grad_key = _product(grad_products.transpose(1, 2), query, ctx.scaling)
        return *(grad.unflatten(0, heads) for grad in (grad_query, grad_key, grad_value)), None, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(scaling · query keyᵀ) where `mask` is true, [batch · heads, length, length]."""
    products = _product(query, key.transpose(1, 2), scaling)
    if mask is not None:
        products.unflatten(0, (len(mask), -1)).masked_fill_(~mask, torch.finfo(products.dtype).min)
    return products.softmax(-1, dtype=torch.promote_types(products.dtype, torch.float32)).to(products.dtype)


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


def use_fast_dropout(model: PreTrainedModel) -> None:
    """Let a model use the dropout of this module: in its layers and, if its attention is torch's, in that too.

    Transformers then knows `attention` as `ATTENTION`.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, attention_mask)
        model.set_attn_implementation(ATTENTION)
