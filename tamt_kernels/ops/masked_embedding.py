"""An embedding over a masked weight that touches only the rows that are looked up."""

from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate, refuse_double_backward


def _fake(
    ids: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    padding_idx: int | None = None,
    absolute: bool = False,
) -> Tensor:
    return torch.empty((*ids.shape, weight.shape[1]), dtype=weight.dtype, device=weight.device)


def _fake_backward(
    grad_output: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, weight, score, _value, _cut, padding_idx, _absolute = inputs
    ctx.save_for_backward(ids, weight)
    ctx.padding_idx = padding_idx
    ctx.score_dtype = score.dtype


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    ids, weight = ctx.saved_tensors
    grad_score = _backward_operator(grad_output, ids, weight, ctx.padding_idx, ctx.score_dtype)
    return None, None, grad_score, None, None, None, None


_operator = define(
    "masked_embedding(Tensor ids, Tensor weight, Tensor score, Tensor value, Tensor cut, "
    "int? padding_idx=None, bool absolute=False) -> Tensor",
    eager=reference.masked_embedding,
    fake=_fake,
    triton="masked_embedding",
)
_backward_operator = define(
    "masked_embedding_backward(Tensor grad_output, Tensor ids, Tensor weight, int? padding_idx, "
    "ScalarType dtype) -> Tensor",
    eager=reference.masked_embedding_backward,
    fake=_fake_backward,
    triton="masked_embedding",
)
differentiate("masked_embedding", _backward, _save)
differentiate("masked_embedding_backward", refuse_double_backward)


def masked_embedding(
    ids: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    padding_idx: int | None = None,
    *,
    ranking: checks.Ranking = "signed",
) -> Tensor:
    """The rows ``ids`` of W ⊙ m (section 3.4.1).

    Differentiable only in ``score``. The gradient is dense: (Σ over a row's look-ups) ⊙ W (eq. 4) in the rows that are
    looked up and zero in all others.

    Args:
        ids: int64 or int32, any shape, from 0 to rows - 1.
        weight: W [rows, columns], frozen; float32, float16 or bfloat16.
        score: S [rows, columns]; float32, float16 or bfloat16.
        value, cut: the threshold, as in ``mask_weight``.
        padding_idx: a row whose score gets no gradient; the row itself is returned like any other. Negative values
            count from the end.
        ranking: as given to ``topk_threshold``.

    Returns:
        [*ids.shape, columns], in the weight's dtype.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
        IndexError: an id is out of range. On a GPU, where this check would have to wait for the ids, the row is NaN
            instead.
    """
    checks.tensor("masked_embedding", "ids", ids)
    checks.dtype("masked_embedding", "ids", ids, (torch.int64, torch.int32))
    checks.weight_and_score("masked_embedding", weight, score)
    checks.dimensions("masked_embedding", "weight", weight, 2)
    checks.device("masked_embedding", "ids", ids, weight.device, "weight")
    checks.threshold("masked_embedding", value, cut, score.device)
    if padding_idx is not None:
        checks.row("masked_embedding", "padding_idx", padding_idx, tuple(weight.shape))
        padding_idx %= weight.shape[0]
    absolute = checks.absolute("masked_embedding", ranking)
    rows_of_masked_weight: Tensor = _operator(ids, weight, score, value, cut, padding_idx, absolute)
    return rows_of_masked_weight
