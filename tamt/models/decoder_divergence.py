"""KD of a frozen decoder's logits, a few rows at a time."""

import torch
from torch import Tensor, nn

import tamt_kernels as tk
from tamt.models.decoder_rows import sum_over_rows


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

    def loss_of(rows: slice, logits: Tensor, scale: float | None) -> tuple[Tensor, Tensor | None]:
        mask = counted[rows].unsqueeze(1)
        wanted = _log_shares(_logits(target[rows], target_decoder, logits.dtype), temperature)
        own = _log_shares(logits, temperature)
        shares = wanted.exp()
        loss = (shares * (wanted - own) * mask).sum() * temperature**2
        if scale is None:
            return loss, None
        return loss, own.exp_().sub_(shares).mul_(mask * (scale * temperature))

    return sum_over_rows(hidden, decoder, loss_of)


def _logits(hidden: Tensor, decoder: nn.Linear, dtype: torch.dtype) -> Tensor:
    bias = None if decoder.bias is None else decoder.bias.detach().to(dtype)
    return tk.linear(hidden.detach().to(dtype), decoder.weight.detach().to(dtype), bias)


def _log_shares(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature), float32 [rows, vocabulary]."""
    return (logits.float() / temperature).log_softmax(-1)
