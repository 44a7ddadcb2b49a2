"""The masked weights of many matrices at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate
from tamt_kernels.ops.binarize import operator as _binarize
from tamt_kernels.ops.mask_weight import operator as _mask_weight
from tamt_kernels.ops.pack import operator as _pack
from tamt_kernels.ops.ste_backward import products_of
from tamt_kernels.reference import Thresholds, group_offsets, ungrouped


def _composed(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The definition with the operators for one matrix, and so with their fastest kernels."""
    return reference.mask_weights(*arguments, mask_weight=_mask_weight, binarize=_binarize, pack_mask=_pack)


def _fake(
    weights: list[Tensor],
    scores: list[Tensor],
    values: Tensor,
    cuts: Tensor,
    dtype: torch.dtype,
    pack: bool = False,
    absolute: bool = False,
) -> tuple[Tensor, Tensor]:
    _offsets, total = group_offsets([weight.numel() for weight in weights])
    return (
        torch.empty(total, dtype=dtype, device=values.device),
        torch.empty(total // 8 if pack else 0, dtype=torch.uint8, device=values.device),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weights, scores, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*weights)
    ctx.score_dtypes = [score.dtype for score in scores]


def _backward(ctx: Any, grad_masked: Tensor, _grad_bits: Tensor) -> tuple[Any, ...]:
    weights = list(ctx.saved_tensors)
    dtype = ctx.score_dtypes[0] if len(set(ctx.score_dtypes)) == 1 else torch.float32  # so that they are rounded once
    products = products_of(ungrouped(grad_masked, weights), weights, dtype)
    grad_scores = [product.to(dtype) for product, dtype in zip(products, ctx.score_dtypes, strict=True)]
    # torch 2.11 leaves out arguments that have their default value, and accepts no gradient for them.
    return ([None] * len(weights), grad_scores, None, None, None, None, None)[: len(ctx.needs_input_grad)]


_operator = define(
    "mask_weights(Tensor[] weights, Tensor[] scores, Tensor values, Tensor cuts, ScalarType dtype, bool pack=False, "
    "bool absolute=False) -> (Tensor masked, Tensor bits)",
    eager=_composed,
    fake=_fake,
    triton="mask_weights",
    composed_of="mask_weight",
)
differentiate("mask_weights", _backward, _save)


def mask_weights(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    thresholds: Thresholds,
    dtype: torch.dtype | None = None,
    *,
    pack: bool = False,
    ranking: checks.Ranking = "signed",
) -> tuple[list[Tensor], list[Tensor]]:
    """``mask_weight`` for every matrix, on a GPU in one launch; with ``pack`` also the packed masks.

    Differentiable only in the scores, as ``mask_weight`` is.

    Args:
        weights: M tensors W of any shape on one device; float32, float16 or bfloat16.
        scores: M tensors S, each of its weight's shape.
        thresholds: float32 [M] and int64 [M], from ``topk_threshold`` for these scores.
        dtype: dtype of the results; by default that of the first weight.
        pack: whether to return the masks too, packed as by ``pack_mask``.
        ranking: as given to ``topk_threshold``.

    Returns:
        The masked weights, each of its weight's shape, and the packed masks (uint8 [⌈n / 8⌉]; an empty list without
        ``pack``). The tensors of each list are views of one flat tensor, and so are the scores' gradients: a reference
        to one matrix keeps all of them in memory.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or length, or more than 2**31
            entries.
    """
    weights, scores = list(weights), list(scores)
    if len(scores) != len(weights):
        raise ValueError(f"mask_weights: scores has length {len(scores)} but must have {len(weights)}, as weights has")
    for i, (weight, score) in enumerate(zip(weights, scores, strict=True)):
        checks.weight_and_score("mask_weights", weight, score, f"s[{i}]")
        checks.device("mask_weights", f"weights[{i}]", weight, weights[0].device, "weights[0]")
    checks.thresholds("mask_weights", "thresholds", thresholds, weights, "weights")
    checks.result_dtype("mask_weights", dtype)
    absolute = checks.absolute("mask_weights", ranking)
    if not weights:
        return [], []
    masked, bits = _operator(weights, scores, *thresholds, dtype or weights[0].dtype, pack, absolute)
    offsets, _total = group_offsets([weight.numel() for weight in weights])
    if not pack:
        return ungrouped(masked, weights), []
    sizes = [(weight.numel() + 7) // 8 for weight in weights]
    packed = [bits[offset // 8 : offset // 8 + size] for offset, size in zip(offsets, sizes, strict=True)]
    return ungrouped(masked, weights), packed
