"""The operators of ``MaskAdamW``: the norm of the scores' gradients, and the step."""

from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend.library import define
from tamt_kernels.ops.mask_weight import operator as _mask_weight
from tamt_kernels.ops.threshold import unchecked as _topk_threshold_unchecked


def _fake_norm(grads: list[Tensor], weights: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=weights[0].device)


def _fake(*_arguments: Any) -> None:
    return None


def _over_operators(*arguments: Any) -> None:
    """The definition, over the operators of its parts and so their fastest kernels."""
    reference.mask_adamw(*arguments, topk_threshold_unchecked=_topk_threshold_unchecked, mask_weight=_mask_weight)


gradient_norm = define(
    "gradient_norm(Tensor[] grads, Tensor[] weights) -> Tensor",
    eager=reference.gradient_norm,
    triton="ste_backward",
    fake=_fake_norm,
)
mask_adamw = define(
    "mask_adamw(Tensor[] grads, Tensor[] weights, Tensor(a!)[] scores, Tensor(b!)[] means, Tensor(c!)[] squares, "
    "Tensor(d!)[] masked, Tensor(e!) values, Tensor(f!) cuts, int[] keep, Tensor rates, float beta1, float beta2, "
    "float eps, bool renew=True, bool absolute=False, Tensor[]? places=None) -> ()",
    eager=_over_operators,
    fake=_fake,
    triton="mask_adamw",
)
