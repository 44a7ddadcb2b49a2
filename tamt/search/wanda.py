"""Wanda: one-shot pruning by |W_ij| · ‖x_j‖, with ‖x_j‖ measured on some text (Sun et al., 2023)."""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from tamt.masks.masking import Masks, keep_of, prunable_modules, top_masks
from tamt.runtime.choices import Scope
from tamt.runtime.errors import check_choice
from tamt.search.calibration import activation_importance
from tamt.search.oneshot import oneshot
from tamt.search.search import Search


def wanda(search: Search) -> list[dict]:
    """Keep the weights of largest |W_ij| · ‖x_j‖, and the largest |W| of the word embedding.

    Raises:
        UserError: the scope is unknown; see also `tamt.search.calibration.input_norms`.
    """
    scope = search.options.scope or "matrix"
    check_choice("scope", scope, get_args(Scope))
    if search.options.pattern is not None:
        return oneshot(search, lambda _: top_masks(activation_importance(search), search.sparsity))
    modules = prunable_modules(search.student.model) if scope == "row" else {}
    by_row = {f"{name}.weight" for name, module in modules.items() if isinstance(module, nn.Linear)}
    return oneshot(search, lambda _: masks_by_row(activation_importance(search), search.options.share(), by_row))


def masks_by_row(importance: Mapping[str, Tensor], sparsity: float, by_row: set[str]) -> Masks:
    """The masks that keep the most important entries, per row in the matrices `by_row` and per matrix in the others.

    Each mask has exactly `keep_of` ones.
    """
    whole = top_masks({name: values for name, values in importance.items() if name not in by_row}, sparsity)
    return {
        name: row_mask(values, keep_of(values.numel(), sparsity)) if name in by_row else whole[name]
        for name, values in importance.items()
    }


def row_mask(importance: Tensor, keep: int) -> Tensor:
    """The mask that keeps the ⌊keep / rows⌋ most important entries of each row, ties broken by lower column.

    The rest of `keep`, less than one entry per row, goes to the rows whose next entry is the most important, ties
    broken by lower row.

    Args:
        importance: [rows, columns], without NaN.
        keep: from 0 to rows × columns.

    Returns:
        bool [rows, columns] with exactly `keep` ones.
    """
    per_row, left = divmod(keep, len(importance))
    order = importance.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(importance, dtype=torch.bool).scatter_(1, order[:, :per_row], True)
    if left:
        following = order[:, per_row]
        rows = importance.gather(1, following[:, None]).squeeze(1).argsort(descending=True, stable=True)[:left]
        mask[rows, following[rows]] = True
    return mask
