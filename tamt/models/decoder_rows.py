"""A loss of a frozen decoder's logits, a few rows at a time, so that they never all lie in memory.

In BERT-base, 1,424 of the 16 × 512 tokens of a step are masked; their logits are 0.17 GB in float32, and loss and
backward need twice as much again, on top of all activations. The gradient of the hidden states follows from the logits
alone, so the forward pass computes it, and the backward pass only scales it.
"""

from collections.abc import Callable
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

LossOfRows = Callable[[slice, Tensor, float | None], tuple[Tensor, Tensor | None]]
"""The loss of some rows: of the rows, their logits and a factor the sum of their losses, float32, and its gradient in
the logits times the factor, float32; of no factor, no gradient."""


def sum_over_rows(hidden: Tensor, decoder: nn.Linear, loss_of: LossOfRows) -> Tensor:
    """The sum of a loss of `decoder(hidden)`, whose logits are computed in autocast's type.

    Args:
        hidden: [n, width].
        decoder: from width to the vocabulary; its matrix is frozen.
        loss_of: the loss of some rows, and its gradient.

    Returns:
        0-dim, float32. It has a gradient in `hidden` and in the decoder's bias.

    Raises:
        ValueError: the decoder's matrix trains.
    """
    if decoder.weight.requires_grad:
        raise ValueError("sum_over_rows: the decoder's weight requires a gradient but must be frozen")
    trains = hidden.requires_grad or (decoder.bias is not None and decoder.bias.requires_grad)
    backward = torch.is_grad_enabled() and trains
    loss: Tensor = _SumOverRows.apply(hidden, decoder.weight, decoder.bias, loss_of, backward)
    return loss


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss_of: LossOfRows, backward: bool
    ) -> Tensor:
        dtype = autocast_dtype(hidden)
        scale = HALF_SCALE if dtype == torch.float16 else 1.0
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if backward else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if backward and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for first in range(0, len(hidden), ROWS):
                rows = slice(first, first + ROWS)
                logits = tk.linear(hidden[rows].to(dtype), matrix, offset)
                some, grad = loss_of(rows, logits, scale if backward else None)
                del logits
                loss += some
                if grad is None or grad_hidden is None:
                    continue
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad_hidden[rows] = tk.linear_backward_x(grad.to(dtype), matrix)
        ctx.save_for_backward(grad_hidden, grad_bias)
        ctx.scale, ctx.dtypes = scale, (hidden.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0] / ctx.scale
        grad_hidden, grad_bias = (
            None if gradient is None else (gradient.float() * factor).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return grad_hidden, None, grad_bias, None, None
