"""Checkpoints of torch.nn.utils.prune, which holds a pruned tensor as a pair: `weight_orig` and `weight_mask`."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tamt.runtime.errors import UserError

ORIGINAL, MASK = "_orig", "_mask"
HALVES = tuple(f"{kind}{half}" for kind in ("weight", "bias") for half in (ORIGINAL, MASK))


def is_pruned(names: Iterable[str]) -> bool:
    """Whether a state dict with these names is that of a model that torch.nn.utils.prune has pruned."""
    return any(name.endswith((f"weight{ORIGINAL}", f"bias{ORIGINAL}")) for name in names)


def pruned_names(state: Mapping[str, Tensor], source: object) -> list[str]:
    """The names of the tensors that a state dict holds as pairs.

    Args:
        state: of a pruned model.
        source: where it comes from, for a message.

    Raises:
        UserError: half of a pair is missing, or its halves have other shapes.
    """
    halves = (name for name in state if name.endswith(HALVES))
    names = list(dict.fromkeys(name.removesuffix(ORIGINAL).removesuffix(MASK) for name in halves))
    for name in names:
        for here, missing in ((ORIGINAL, MASK), (MASK, ORIGINAL)):
            if f"{name}{missing}" not in state:
                raise UserError(
                    f"{source} holds {name}{here} but no {name}{missing}; save the whole state dict of the pruned model"
                )
        original, mask = list(state[f"{name}{ORIGINAL}"].shape), list(state[f"{name}{MASK}"].shape)
        if original != mask:
            raise UserError(
                f"{source} holds {name}{MASK} of shape {mask} for {name}{ORIGINAL} of shape {original}; save the state "
                "dict of the pruned model again"
            )
    return names


def as_mask(values: Tensor, name: str, source: object) -> Tensor:
    """A mask of zeros and ones in any dtype as a bool tensor. Raises UserError if it holds other values."""
    if not ((values == 0) | (values == 1)).all():
        raise UserError(f"{source} holds other values than 0 and 1 in {name[:100]!r}; save masks, not weights")
    return values.to(torch.bool)


def merge(state: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """A plain state dict: the original with zeros where the mask prunes, instead of each pair.

    Raises:
        UserError: see `pruned_names` and `as_mask`.
    """
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(HALVES)}
    for name in pruned_names(state, source):
        mask = as_mask(state[f"{name}{MASK}"], f"{name}{MASK}", source)
        plain[name] = state[f"{name}{ORIGINAL}"].masked_fill(~mask, 0)
    return plain


def split(
    state: Mapping[str, Tensor], originals: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict of the pruned model: a pair instead of each tensor that has a mask, which is float as torch's."""
    pairs = {name: tensor for name, tensor in state.items() if name not in masks}
    for name, mask in masks.items():
        pairs[f"{name}{ORIGINAL}"] = originals[name]
        pairs[f"{name}{MASK}"] = mask.to(originals[name].dtype)
    return pairs
