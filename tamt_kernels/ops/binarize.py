"""The mask of a score and its threshold."""

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define


def _fake(score: Tensor, value: Tensor, cut: Tensor, absolute: bool = False) -> Tensor:
    return torch.empty(score.shape, dtype=torch.bool, device=score.device)


operator = define(
    "binarize(Tensor score, Tensor value, Tensor cut, bool absolute=False) -> Tensor",
    eager=reference.binarize,
    fake=_fake,
    triton="binarize",
)


def binarize(score: Tensor, value: Tensor, cut: Tensor, *, ranking: checks.Ranking = "signed") -> Tensor:
    """The mask m of a score matrix (eq. 3): true where score > value, or score = value and flat index < cut.

    Args:
        score: any shape, float32, float16 or bfloat16.
        value: φ, float32, 0-dim, on the score's device: ``thresholds.values[i]`` of ``topk_threshold``.
        cut: int64, 0-dim, on the score's device: ``thresholds.cuts[i]``.
        ranking: as given to ``topk_threshold``.

    Returns:
        A contiguous bool tensor of the score's shape.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or the score has more than 2**31
            entries.
    """
    checks.matrix("binarize", "score", score)
    checks.threshold("binarize", value, cut, score.device)
    mask: Tensor = operator(score.detach(), value, cut, checks.absolute("binarize", ranking))
    return mask
