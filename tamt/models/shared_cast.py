"""In half precision, one cast of the input of attention instead of three.

Autocast casts the input of each layer for itself. Queries, keys and values come from the same float32 input, so it
is cast and kept for the backward pass three times, and three gradients are widened before they are added up.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROJECTIONS = ("query", "q_lin")
"""Names of the layer that makes the queries: in BERT, RoBERTa and ELECTRA, and in DistilBERT."""


def share_casts(model: PreTrainedModel) -> None:
    """Let each attention of a model cast its input once, under autocast. The forward pass computes the same.

    In the backward pass the gradients of queries, keys and values are then added up in half precision.
    """
    for module in model.modules():
        if any(isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS):
            module.register_forward_pre_hook(_cast, with_kwargs=True)


def _cast(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention, with its input in the type that autocast computes in.

    The input is the first argument, or has the name that most models use. Under another name autocast casts it.
    """
    if positional:
        first, *others = positional
        return (first.to(autocast_dtype(first)), *others), named
    hidden = named.get("hidden_states")
    if hidden is None:
        return positional, named
    return positional, {**named, "hidden_states": hidden.to(autocast_dtype(hidden))}


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The type that autocast computes in on the device of a tensor; the tensor's own where autocast is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
