"""The exact top-k threshold of every score matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define
from tamt_kernels.reference import Thresholds


def _fake(scores: list[Tensor], keep: list[int], absolute: bool = False) -> tuple[Tensor, Tensor]:
    device = scores[0].device if scores else None
    return (
        torch.empty(len(scores), dtype=torch.float32, device=device),
        torch.empty(len(scores), dtype=torch.int64, device=device),
    )


def _fake_unchecked(
    scores: list[Tensor], keep: list[int], last: Tensor | None = None, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    values, cuts = _fake(scores, keep, absolute)
    return values, cuts, torch.empty(len(scores), dtype=torch.bool, device=values.device)


_operator = define(
    "topk_threshold(Tensor[] scores, int[] keep, bool absolute=False) -> (Tensor values, Tensor cuts)",
    eager=reference.topk_threshold,
    fake=_fake,
    triton="threshold",
)


def _composed(
    scores: list[Tensor], keep: list[int], last: Tensor | None = None, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition with the operator ``topk_threshold``, and so with its fastest kernel."""
    return reference.topk_threshold_unchecked(scores, keep, last, absolute, topk_threshold=_operator)


unchecked = define(
    "topk_threshold_unchecked(Tensor[] scores, int[] keep, Tensor? last=None, bool absolute=False) -> "
    "(Tensor values, Tensor cuts, Tensor has_nan)",
    eager=_composed,
    fake=_fake_unchecked,
    triton="threshold",
    composed_of="topk_threshold",
)


def topk_threshold(
    scores: Sequence[Tensor],
    keep: Sequence[int],
    *,
    ranking: checks.Ranking = "signed",
    last: Thresholds | None = None,
    check_nan: bool = True,
) -> Thresholds:
    """The thresholds that keep exactly ``keep[i]`` entries of each ``scores[i]`` (section 3.4.1, eq. 3).

    φ is the ``keep``-th largest score of a matrix. Entries above φ are kept. Of those equal to φ, the first ones by
    flat (row-major) index are kept, up to ``keep`` in all: those whose index is below the cut.

    Args:
        scores: M tensors of any shape, float32, float16 or bfloat16, on one device. Infinities rank as such;
            -0 and +0 are equal.
        keep: M ints, each from 0 to the number of entries of its score.
        ranking: "signed" ranks by the score itself, as eq. 3 and the authors' code do; "abs" by its absolute value, as
            the paper's text says.
        last: thresholds of the same matrices that may be near, such as those of the previous optimizer step. They never
            change the result, but make the search faster if they are near.
        check_nan: whether to wait for a GPU to know that no score is NaN; nothing else is waited for. Without it, a
            score with NaN entries gets value NaN and cut 0, a mask of zeros. On a CPU NaN is an error in any case; with
            ``last`` this check breaks the graph of ``torch.compile``.

    Returns:
        ``Thresholds(values, cuts)``, float32 [M] and int64 [M], on the scores' device. A ``keep`` of 0 gives value +inf
        and cut 0. A value of zero is always +0.

    Raises:
        ValueError: a score has NaN entries or more than 2**31 entries, the devices differ, the lists differ in length,
            or a ``keep`` is out of range.
        TypeError: a score is not a floating-point tensor, or a ``keep`` is not an int.
    """
    scores, keep = list(scores), list(keep)
    if len(keep) != len(scores):
        raise ValueError(f"topk_threshold: keep has length {len(keep)} but must have {len(scores)}, as scores has")
    for i, (score, count) in enumerate(zip(scores, keep, strict=True)):
        checks.matrix("topk_threshold", f"scores[{i}]", score)
        checks.device("topk_threshold", f"scores[{i}]", score, scores[0].device, "scores[0]")
        checks.keep("topk_threshold", f"keep[{i}]", count, f"scores[{i}]", score)
    absolute = checks.absolute("topk_threshold", ranking)
    if last is not None:
        checks.thresholds("topk_threshold", "last", last, scores, "scores")
    if not scores:
        return Thresholds(*_fake([], []))
    detached = [score.detach() for score in scores]
    check_nan = check_nan or not scores[0].is_cuda
    if last is None and check_nan:
        values, cuts = _operator(detached, keep, absolute)
        return Thresholds(values, cuts)
    values, cuts, has_nan = unchecked(detached, keep, last.values if last is not None else None, absolute)
    if check_nan and not has_nan.is_meta:
        for i, is_nan in enumerate(has_nan.tolist()):
            if is_nan:
                raise ValueError(f"topk_threshold: scores[{i}] has NaN entries; a score must be a number or infinite")
    return Thresholds(values, cuts)
