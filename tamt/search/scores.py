"""Where mask training starts: the first masks, and the scores that rank the weights into them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.file import MaskInfo, load_masks
from tamt.masks.groups import find_groups_of
from tamt.masks.masking import (
    POOLER,
    MaskedModule,
    Masks,
    Sparsity,
    check_fits,
    is_exact,
    prunable_weights,
    top_masks,
)
from tamt.runtime.choices import check_initial
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure
from tamt.search.calibration import activation_importance
from tamt.search.group_scores import group_importance
from tamt.search.search import Search
from tamt_kernels.nn import INITIAL_THRESHOLD

SMALLEST_OF_GROUP = 1e-30
"""The threshold of a group whose weights have no importance; positive, so that pruned entries can be below it."""


def starting_point(search: Search) -> tuple[Masks, dict[str, Tensor]]:
    """The first masks of a mask training, and the importance of each weight that orders its scores.

    Without `--initial` the masks keep what the criterion of the scores ranks highest: |W| for magnitude and two-valued
    scores, which is OMP's mask (paper 3.2), and |W| · ‖x‖ for activation.

    The importance of a group is the norm of that of its members.

    Returns:
        A mask and, except with two-valued scores, the importance (float32, at least 0) for each prunable matrix, or for
        the groups of a structure.

    Raises:
        UserError: the kind of scores or the mask to start from is unknown, or does not fit the model; or a weight, or
            an input of the calibration, is not finite.
    """
    options, weights = search.options, search.weights()
    importance: dict[str, Tensor] = {}
    if search.plan.scores == "magnitude":
        importance = {name: weight.detach().abs() for name, weight in weights.items()}
    elif search.plan.scores == "activation":
        importance = activation_importance(search)
    for name, values in importance.items():
        if not values.isfinite().all():
            raise UserError(f"the matrix {name} has weights that are not finite; give another checkpoint")
    if importance and isinstance(search.sparsity, Structure):
        importance = group_importance(search.student.encoder, search.sparsity, importance, search.plan.scores)
    if options.initial is not None:
        masks = initial_masks(search, options.initial)
    elif importance:
        masks = top_masks(importance, search.sparsity)
    else:
        masks = search.magnitude_masks()
    return masks, importance


def initial_masks(search: Search, initial: str) -> Masks:
    """The masks that `--initial` names: OMP's (paper 3.2), random ones (paper 4.2.4), or those in a mask file.

    Raises:
        UserError: see `check_initial` and `read_initial`.
    """
    check_initial(initial)
    if initial == "omp":
        return search.magnitude_masks()
    if initial == "random":
        return search.random_masks()
    return read_initial(Path(initial), search.student.encoder, search.sparsity, not search.options.dense_embedding)


def read_initial(path: Path, encoder: PreTrainedModel, sparsity: Sparsity, embedding: bool = True) -> Masks:
    """Read the masks that train, on the model's device; with the word embedding's if it is masked too.

    Raises:
        UserError: the file cannot be read, is for another model, or has another sparsity.
    """
    masks, info = load_masks(path)
    if isinstance(sparsity, Structure) or info.structure is not None:
        return _of_structure(path, masks, info, encoder, sparsity)
    masks.pop(f"{POOLER}.weight", None)  # the pooler gets no gradient; its mask does not train
    check_fits(masks, encoder)
    for name, mask in masks.items():
        if is_exact(name, mask, sparsity):
            continue
        if isinstance(sparsity, tk.Pattern):
            own = f"has the pattern {info.pattern}" if info.pattern else "has no pattern"
            raise UserError(
                f"the mask {path} {own}, and in {name} it does not keep {sparsity}; give a mask that was found with "
                f"--pattern {sparsity}"
            )
        raise UserError(
            f"the mask {path} prunes {1 - int(mask.sum()) / mask.numel():.4g} of {name}, not {sparsity:g}; give "
            f"its own --sparsity ({info.sparsity:g}) or a mask of this one"
        )
    weights = prunable_weights(encoder, embedding=embedding)
    for name in weights:
        if name not in masks:
            remedy = ", or --dense-embedding" if "embedding" in name else ""
            raise UserError(f"the mask {path} has none for {name}; give a mask of every matrix{remedy}")
    return {name: masks[name].to(weight.device) for name, weight in weights.items()}


def _of_structure(path: Path, masks: Masks, info: MaskInfo, encoder: PreTrainedModel, sparsity: Sparsity) -> Masks:
    """The masks of a structure. Raises UserError if it is not that of the search."""
    if info.structure != str(sparsity):
        own = f"has the structure {info.structure}" if info.structure else "has no structure"
        wanted = f"found with --structure {sparsity}" if isinstance(sparsity, Structure) else "of single weights"
        raise UserError(f"the mask {path} {own}; give a mask that was {wanted}")
    find_groups_of(encoder, masks)
    return {name: mask.to(encoder.device) for name, mask in masks.items()}


@torch.no_grad()
def set_scores(masked: Mapping[str, MaskedModule], importance: Mapping[str, Tensor]) -> None:
    """Give wrapped modules the scores of `scores_for` and renew their masks, which do not change."""
    for name, values in importance.items():
        module = masked[name]
        module.score.copy_(scores_for(values, module.mask, module.pattern))
    tk.update_masks(masked[name] for name in importance)


def scores_for(importance: Tensor, mask: Tensor, pattern: tk.Pattern | None = None) -> Tensor:
    """Scores φ₀ · c / t for weights of importance c, with φ₀ = 0.01 and t the `keep`-th largest importance.

    They are at least φ₀ exactly where the mask keeps, so the threshold is φ₀ and the mask is the given one despite ties
    and rounding. Entries near the threshold change first in training, important ones are safe.

    If t is 0, because fewer than `keep` weights have any importance, the smallest positive importance replaces it, or 1
    if all are 0.

    With a pattern each group has a threshold of its own, its n-th largest score, so that here too large weights are
    safe, and the mask is the given one.

    Args:
        importance: float32, finite, at least 0.
        mask: bool, of the same shape.
        pattern: of the mask.

    Returns:
        float32, of the same shape.
    """
    ratio = (importance / _scale(importance, int(mask.sum()))).clamp_(max=torch.finfo(torch.float32).max)
    scores = ratio.mul_(INITIAL_THRESHOLD)
    if pattern is None:
        above = torch.tensor(INITIAL_THRESHOLD, device=importance.device)
    else:
        groups = scores.reshape(-1, pattern.m)
        nth = groups.topk(pattern.n, dim=1).values[:, -1].clamp(min=SMALLEST_OF_GROUP)
        above = nth.repeat_interleave(pattern.m).reshape(scores.shape)
    below = torch.nextafter(above, torch.zeros_like(above))
    return torch.where(mask, scores.clamp(min=above), scores.clamp(max=below))


def _scale(importance: Tensor, keep: int) -> Tensor:
    """The `keep`-th largest importance (the largest if `keep` is 0), positive; see `scores_for`."""
    scale = tk.topk_threshold([importance], [max(keep, 1)]).values[0]
    if scale > 0:
        return scale
    positive = importance[importance > 0]
    return positive.min() if len(positive) else torch.ones_like(scale)
