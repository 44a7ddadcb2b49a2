"""KD of a frozen decoder's logits, a few rows at a time, so that they never all lie in memory.

See `tamt.models.decoder_loss`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import tamt_kernels as tk
from tamt.models.decoder_loss import HALF_SCALE, ROWS, scaled
from tamt.models.shared_cast import autocast_dtype


def decoder_divergence(
    hidden: Tensor, decoder: nn.Linear, target: Tensor, target_decoder: nn.Linear, counted: Tensor, temperature: float
) -> Tensor:
    """T² · Σ KL(softmax(target logits / T) ‖ softmax(logits / T)) over the rows that count (Hinton et al., 2015).

    Computed in autocast's type, shares in float32.

    Args:
        hidden: [n, width], what the student's decoder reads.
        decoder: the student's, from width to the vocabulary; its matrix is frozen.
        target: [n, width], what the teacher's decoder reads; gets no gradient.
        target_decoder: the teacher's.
        counted: bool [n].
        temperature: T.

    Returns:
        0-dim, float32.

    Raises:
        ValueError: the student's decoder matrix trains.
    """
    if decoder.weight.requires_grad:
        raise ValueError("decoder_divergence: the decoder's weight requires a gradient but must be frozen")
    trains = hidden.requires_grad or (decoder.bias is not None and decoder.bias.requires_grad)
    backward = torch.is_grad_enabled() and trains
    teacher = _Teacher(target.detach(), target_decoder, counted, temperature)
    loss: Tensor = _DecoderDivergence.apply(hidden, decoder.weight, decoder.bias, teacher, backward)
    return loss


class _Teacher(NamedTuple):
    """What the student is compared with; none of it gets a gradient."""

    hidden: Tensor
    decoder: nn.Linear
    counted: Tensor
    temperature: float


class _DecoderDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: _Teacher, backward: bool
    ) -> Tensor:
        decoder, temperature = teacher.decoder, teacher.temperature
        dtype = autocast_dtype(hidden)
        scale = HALF_SCALE if dtype == torch.float16 else 1.0
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if backward else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if backward and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            for first in range(0, len(hidden), ROWS):
                some = slice(first, first + ROWS)
                rows = teacher.counted[some].unsqueeze(1)
                target = _log_shares(teacher.hidden[some], decoder.weight, decoder.bias, temperature, dtype)
                own = _log_shares(hidden[some], matrix, bias, temperature, dtype)
                shares = target.exp()
                loss += (shares * (target - own) * rows).sum() * temperature**2
                del target
                if grad_hidden is None:
                    continue
                grad = own.exp_().sub_(shares).mul_(rows * (scale * temperature))
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
        return grad_hidden, None, grad_bias, None, None


def _log_shares(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor:
    """log softmax(logits / temperature), float32 [rows, vocabulary]."""
    logits = tk.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return (logits.float() / temperature).log_softmax(-1)
