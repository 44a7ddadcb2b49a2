"""Masks that keep n of each m neighbours, such as 2:4, and weights under them."""

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define
from tamt_kernels.ops.ste_backward import differentiate_straight_through
from tamt_kernels.reference import Pattern


def _fake_mask(score: Tensor, n: int, m: int, absolute: bool = False) -> Tensor:
    return torch.empty(score.shape, dtype=torch.bool, device=score.device)


def _fake_weight(
    weight: Tensor, score: Tensor, n: int, m: int, dtype: torch.dtype | None = None, absolute: bool = False
) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


_mask = define(
    "pattern_mask(Tensor score, int n, int m, bool absolute=False) -> Tensor",
    eager=reference.pattern_mask,
    fake=_fake_mask,
    triton="pattern",
)
operator = define(
    "pattern_weight(Tensor weight, Tensor score, int n, int m, ScalarType? dtype=None, bool absolute=False) -> Tensor",
    eager=reference.pattern_weight,
    fake=_fake_weight,
    triton="pattern",
)
differentiate_straight_through("pattern_weight")


def pattern_mask(score: Tensor, pattern: Pattern, *, ranking: checks.Ranking = "signed") -> Tensor:
    """The mask that keeps exactly ``n`` of each ``m`` neighbours along the last dimension, those of largest score.

    Ties are broken by lower index. A score that is NaN ranks like -inf, so a group always keeps ``n``.

    Args:
        score: [..., a multiple of m], float32, float16 or bfloat16.
        pattern: ``Pattern(n, m)``, 1 ≤ n < m ≤ 16.
        ranking: "signed" ranks by the score, "abs" by its absolute value.

    Returns:
        A contiguous bool tensor of the score's shape.

    Raises:
        TypeError, ValueError: the score has the wrong dtype or more than 2**31 entries; the pattern is none, or its m
            does not divide the score's last dimension.
    """
    checks.matrix("pattern_mask", "score", score)
    checks.pattern("pattern_mask", "score", score, pattern)
    mask: Tensor = _mask(score.detach(), *pattern, checks.absolute("pattern_mask", ranking))
    return mask


def pattern_weight(
    weight: Tensor,
    score: Tensor,
    pattern: Pattern,
    dtype: torch.dtype | None = None,
    *,
    ranking: checks.Ranking = "signed",
) -> Tensor:
    """W ⊙ m with the mask of ``pattern_mask``, cast to ``dtype``, in one pass.

    Differentiable only in ``score``, straight through: dS = d(W ⊙ m) ⊙ W (eq. 4), in the score's dtype.

    Args:
        weight: W [..., a multiple of m]; float32, float16 or bfloat16.
        score: S, of the same shape and on the same device; float32, float16 or bfloat16.
        pattern: ``Pattern(n, m)``, 1 ≤ n < m ≤ 16.
        dtype: dtype of the result; by default the weight's.
        ranking: as in ``pattern_mask``.

    Returns:
        A contiguous tensor of the weight's shape. Pruned entries are exactly +0, whatever the weight is there.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries; or the
            pattern does not fit, as in ``pattern_mask``.
    """
    checks.weight_and_score("pattern_weight", weight, score)
    checks.pattern("pattern_weight", "weight", weight, pattern)
    checks.result_dtype("pattern_weight", dtype)
    masked_weight: Tensor = operator(weight, score, *pattern, dtype, checks.absolute("pattern_weight", ranking))
    return masked_weight
