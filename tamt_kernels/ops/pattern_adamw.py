"""The step of ``MaskAdamW`` for masks of a pattern: AdamW for every score, then masked weights, without thresholds."""

from typing import Any

from tamt_kernels import reference
from tamt_kernels.backend.library import define
from tamt_kernels.ops.pattern import operator as _pattern_weight


def _fake(*_arguments: Any) -> None:
    return None


def _composed(*arguments: Any) -> None:
    """The definition with the operator ``pattern_weight``, and so with its fastest kernel."""
    reference.pattern_adamw(*arguments, pattern_weight=_pattern_weight)


pattern_adamw = define(
    "pattern_adamw(Tensor[] grads, Tensor[] weights, Tensor(a!)[] scores, Tensor(b!)[] means, Tensor(c!)[] squares, "
    "Tensor(d!)[] masked, int n, int m, Tensor rates, float beta1, float beta2, float eps, bool absolute=False, "
    "Tensor[]? grad_rows=None) -> ()",
    eager=_composed,
    fake=_fake,
    triton="pattern_adamw",
)
