"""Cross-entropy of a frozen decoder's logits, a few rows at a time."""

import torch
from torch import Tensor, nn

from tamt.models.decoder_rows import sum_over_rows


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

    def loss_of(rows: slice, logits: Tensor, scale: float | None) -> tuple[Tensor, Tensor | None]:
        counted = (labels[rows] != ignored).unsqueeze(1)
        label = torch.where(counted, labels[rows].unsqueeze(1), 0)
        log_shares = logits.log_softmax(-1, dtype=torch.float32)
        loss = -(log_shares.gather(1, label) * counted).sum()
        if scale is None:
            return loss, None
        grad = log_shares.exp_()
        grad.scatter_add_(1, label, grad.new_full((), -1.0).expand(label.shape))
        return loss, grad.mul_(counted * scale)

    return sum_over_rows(hidden, decoder, loss_of)
