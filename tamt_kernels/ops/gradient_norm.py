"""The norm of the gradients of all scores together."""

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend.library import define


def _fake(grads: list[Tensor], weights: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=weights[0].device)


gradient_norm = define(
    "gradient_norm(Tensor[] grads, Tensor[] weights) -> Tensor",
    eager=reference.gradient_norm,
    fake=_fake,
    triton="gradient_norm",
)
