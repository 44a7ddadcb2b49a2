"""The masked weight, W ⊙ m."""

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define
from tamt_kernels.ops.ste_backward import differentiate_straight_through


def _fake(
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    dtype: torch.dtype | None = None,
    absolute: bool = False,
) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


operator = define(
    "mask_weight(Tensor weight, Tensor score, Tensor value, Tensor cut, ScalarType? dtype=None, "
    "bool absolute=False) -> Tensor",
    eager=reference.mask_weight,
    fake=_fake,
    triton="mask_weight",
)
differentiate_straight_through("mask_weight")


def mask_weight(
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    dtype: torch.dtype | None = None,
    *,
    ranking: checks.Ranking = "signed",
) -> Tensor:
    """W ⊙ m with the mask of ``binarize``, cast to ``dtype``, in one pass (section 3.4.1).

    Differentiable only in ``score``, straight through: dS = d(W ⊙ m) ⊙ W (eq. 4), in the score's dtype. W is frozen in
    mask training, so it gets no gradient, even if it requires one.

    Args:
        weight: W, any shape; float32, float16 or bfloat16.
        score: S, of the same shape and on the same device; float32, float16 or bfloat16.
        value: φ, float32, 0-dim: ``thresholds.values[i]`` of ``topk_threshold``.
        cut: int64, 0-dim: ``thresholds.cuts[i]``.
        dtype: dtype of the result; by default the weight's.
        ranking: as given to ``topk_threshold``.

    Returns:
        A contiguous tensor of the weight's shape. Pruned entries are exactly +0, whatever the weight is there.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.weight_and_score("mask_weight", weight, score)
    checks.threshold("mask_weight", value, cut, score.device)
    checks.result_dtype("mask_weight", dtype)
    absolute = checks.absolute("mask_weight", ranking)
    masked_weight: Tensor = operator(weight, score, value, cut, dtype, absolute)
    return masked_weight
