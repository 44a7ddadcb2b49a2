"""Cross-entropy of a frozen decoder's logits, a few rows at a time, so that they never all lie in memory.

In BERT-base, 1,424 of the 16 × 512 tokens of a step are masked; their logits are 0.17 GB in float32, and loss and
backward need twice as much again, on top of all activations. The gradient of the hidden states follows from the logits
alone, so the forward pass computes it, and the backward pass only scales it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import tamt_kernels as tk
from tamt.models.shared_cast import autocast_dtype

ROWS = 256
"""Number of rows whose logits are computed at a time: 31 MB in float32 for BERT's vocabulary."""

HALF_SCALE = 2.0**10
"""Factor of gradients while they are float16: most probabilities of a vocabulary are below its least number, 6e-8."""


def decoder_loss(hidden: Tensor, decoder: nn.Linear, labels: Tensor, ignored: int) -> Tensor:
    """The sum of the cross-entropies of `decoder(hidden)`, computed in autocast's type, with the labels.

    Args:
        hidden: [n, width].
        decoder: from width to the vocabulary; its matrix is frozen.
        labels: int64 [n], below the vocabulary's size.
        ignored: the label of rows that do not count.

    Returns:
        0-dim, float32.

    Raises:
        ValueError: the decoder's matrix trains.
    """
    if decoder.weight.requires_grad:
        raise ValueError("decoder_loss: the decoder's weight requires a gradient but must be frozen")
    trains = hidden.requires_grad or (decoder.bias is not None and decoder.bias.requires_grad)
    backward = torch.is_grad_enabled() and trains
    loss: Tensor = _DecoderLoss.apply(hidden, decoder.weight, decoder.bias, labels, ignored, backward)
    return loss


class _DecoderLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignored: int, backward: bool
    ) -> Tensor:
        dtype = autocast_dtype(hidden)
        scale = HALF_SCALE if dtype == torch.float16 else 1.0
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if backward else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if backward and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for first in range(0, len(hidden), ROWS):
                some = slice(first, first + ROWS)
                counted = labels[some] != ignored
                label = torch.where(counted, labels[some], 0).unsqueeze(1)
                logits = tk.linear(hidden[some].to(dtype), matrix, offset)
                log_shares = logits.log_softmax(-1, dtype=torch.float32)
                del logits
                loss -= (log_shares.gather(1, label) * counted.unsqueeze(1)).sum()
                if grad_hidden is None:
                    continue
                grad = log_shares.exp_()
                grad.scatter_add_(1, label, grad.new_full((), -1.0).expand(label.shape))
                grad.mul_((counted * scale).unsqueeze(1))
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad_hidden[some] = tk.linear_backward_x(grad.to(dtype), matrix)
        ctx.save_for_backward(grad_hidden, grad_bias)
        ctx.scale, ctx.dtypes = scale, (hidden.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_bias = scaled(ctx.saved_tensors, grads[0] / ctx.scale, ctx.dtypes)
        return grad_hidden, None, grad_bias, None, None, None


def scaled(
    gradients: Sequence[Tensor | None], factor: Tensor, dtypes: Sequence[torch.dtype | None]
) -> list[Tensor | None]:
    """Gradients from the forward pass, times the 0-dim factor that the backward pass receives, in `dtypes`."""
    return [
        None if gradient is None else (gradient.float() * factor).to(dtype)
        for gradient, dtype in zip(gradients, dtypes, strict=True)
    ]
