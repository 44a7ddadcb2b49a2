"""The step of ``MaskAdamW``: AdamW for every score, then thresholds and masked weights."""

from typing import Any

from tamt_kernels import reference
from tamt_kernels.backend.library import define
from tamt_kernels.ops.mask_weight import operator as _mask_weight
from tamt_kernels.ops.threshold import unchecked as _topk_threshold_unchecked


def _fake(*_arguments: Any) -> None:
    return None


def _composed(*arguments: Any) -> None:
    """The definition with the operators of its parts, and so with their fastest kernels."""
    reference.mask_adamw(*arguments, topk_threshold_unchecked=_topk_threshold_unchecked, mask_weight=_mask_weight)


mask_adamw = define(
    "mask_adamw(Tensor[] grads, Tensor[] weights, Tensor(a!)[] scores, Tensor(b!)[] means, Tensor(c!)[] squares, "
    "Tensor(d!)[] masked, Tensor(e!) values, Tensor(f!) cuts, int[] keep, Tensor rates, float beta1, float beta2, "
    "float eps, bool renew=True, bool absolute=False, Tensor[]? grad_rows=None) -> ()",
    eager=_composed,
    fake=_fake,
    triton="mask_adamw",
)
