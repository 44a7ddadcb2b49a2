"""The exact top-k threshold of every score matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamt_kernels import checks, reference
from tamt_kernels.library import define
from tamt_kernels.reference import Thresholds


def _fake(scores: list[Tensor], keep: list[int], absolute: bool = False) -> tuple[Tensor, Tensor]:
    device = scores[0].device if scores else None
    return (
        torch.empty(len(scores), dtype=torch.float32, device=device),
        torch.empty(len(scores), dtype=torch.int64, device=device),
    )


_operator = define(
    "topk_threshold(Tensor[] scores, int[] keep, bool absolute=False) -> (Tensor values, Tensor cuts)",
    eager=reference.topk_threshold,
    fake=_fake,
)


def topk_threshold(scores: Sequence[Tensor], keep: Sequence[int], *, ranking: checks.Ranking = "signed") -> Thresholds:
    """The thresholds that keep exactly ``keep[i]`` entries of each ``scores[i]`` (section 3.4.1, eq. 3).

    Per matrix, φ is the keep-th largest score. Entries above φ are kept, and of those equal to φ the first by
    flat (row-major) index, as many as are still missing: those whose index is below the cut.

    Args:
        scores: M tensors of any shape, float32, float16 or bfloat16, on one device. Infinities rank as such;
            -0 and +0 are equal.
        keep: M numbers, each from 0 to the entries of its score.
        ranking: "signed" ranks by the score itself, as eq. 3 and the authors' code do; "abs" by its absolute
            value, as the paper's text says.

    Returns:
        ``Thresholds(values, cuts)``, float32 [M] and int64 [M], on the scores' device. A keep of 0 gives
        value +inf and cut 0; a value of zero is always +0.

    Raises:
        ValueError: a score has NaN entries or more than 2**31, the devices differ, the lists differ in
            length, or a keep is out of range.
        TypeError: a score is not a floating-point tensor, or a keep is not an int.
    """
    scores, keep = list(scores), list(keep)
    if len(keep) != len(scores):
        raise ValueError(f"topk_threshold: keep has length {len(keep)} but must have {len(scores)}, as scores has")
    for i, (score, count) in enumerate(zip(scores, keep, strict=True)):
        checks.matrix("topk_threshold", f"scores[{i}]", score)
        checks.device("topk_threshold", f"scores[{i}]", score, scores[0].device, "scores[0]")
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"topk_threshold: keep[{i}] is a {type(count).__name__} but must be an int")
        if not 0 <= count <= score.numel():
            raise ValueError(
                f"topk_threshold: keep[{i}] is {count} but must be from 0 to {score.numel()}, the entries of "
                f"scores[{i}] of shape {tuple(score.shape)}"
            )
    absolute = checks.absolute("topk_threshold", ranking)
    values, cuts = _operator([score.detach() for score in scores], keep, absolute)
    return Thresholds(values, cuts)
