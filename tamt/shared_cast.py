"""In half precision, one cast of what attention reads in place of three.

Autocast casts the input of each layer for itself. Queries, keys and values are made of the same float32 input, so that
it is written and kept for the backward pass three times, and three gradients are widened before they are added up.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROJECTIONS = ("query", "q_lin")
"""What an attention calls the layer of its queries: in BERT, RoBERTa and ELECTRA, and in DistilBERT."""


def share_casts(model: PreTrainedModel) -> None:
    """Let each attention of a model cast its input once, under autocast; what it computes forward is the same.

    Backward the gradients of queries, keys and values are then added up in half precision.
    """
    for module in model.modules():
        if any(isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS):
            module.register_forward_pre_hook(_cast, with_kwargs=True)


def _cast(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention, the first of which is what it reads, in the type that autocast computes in."""
    if positional:
        return (_as_autocast(positional[0]), *positional[1:]), named
    return positional, {**named, "hidden_states": _as_autocast(named["hidden_states"])}


def _as_autocast(hidden: Tensor) -> Tensor:
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden
