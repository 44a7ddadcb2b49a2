"""KD of the last layer's attention: relations among queries, keys and values (MiniLMv2, Wang et al., 2021)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.masking import stacks_of
from tamt.runtime.errors import UserError

PROJECTIONS = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
)
"""Names of the layers that make queries, keys and values."""
RELATION_HEADS = 12
HIDDEN = -1e4
"""The product of a token with padding, instead of −∞: its share is 0, and no difference is NaN."""


def projections_of(encoder: PreTrainedModel) -> list[nn.Module]:
    """The layers that make the queries, keys and values of the last layer's attention.

    Raises:
        UserError: the attention has no such layers, for example because one matrix makes all three.
    """
    for module in (module for stack in stacks_of(encoder) for module in stack[-1].modules()):
        for names in PROJECTIONS:
            layers = [getattr(module, name, None) for name in names]
            linear = [layer for layer in layers if isinstance(layer, nn.Linear | tk.MaskedLinear)]
            if len(linear) == len(names):
                return [*linear]
    raise UserError(
        f"the attention of {type(encoder).__name__} has no separate layers for queries, keys and values, which the "
        "term attention compares; leave it out of --objective"
    )


class Projections:
    """Catches the queries, keys and values of an encoder's last layer at each forward.

    The hooks stay on the encoder, as `torch.compile` would compile again in each step if they came and went.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        self._caught: dict[int, Tensor] = {}
        for number, module in enumerate(projections_of(encoder)):
            module.register_forward_hook(partial(self._catch, number))

    def _catch(self, number: int, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._caught[number] = output

    def take(self) -> tuple[Tensor, ...]:
        """Queries, keys and values [batch, length, width] of the last forward pass, each given out once."""
        taken = tuple(self._caught[number] for number in sorted(self._caught))
        self._caught.clear()
        return taken


def relation_heads(width: int, heads: int) -> int:
    """How many relation heads `width` is split into: 12 where that divides it, else the model's own `heads`."""
    return RELATION_HEADS if width % RELATION_HEADS == 0 else heads


def relation_loss(
    teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], heads: int, real: Tensor | None, real_tokens: Tensor
) -> Tensor:
    """KL(teacher ‖ student) of the relations, mean over heads and real tokens, summed over queries, keys and values.

    All heads are joined and split again into relation heads r of width d. The relations of X are softmax(X Xᵀ / √d)
    over the real tokens.

    Args:
        teacher: queries, keys and values, [batch, length, width] each.
        student: the same of the student.
        heads: the model's own number of heads.
        real: [batch, length], 0 where there is padding; None where there is none.
        real_tokens: the divisor of the sum over tokens, 0-dim.
    """
    total = torch.zeros((), device=real_tokens.device)
    # In fp32: a relation is a difference of products, of which half precision keeps three digits.
    with torch.autocast(real_tokens.device.type, enabled=False):
        for theirs, ours in zip(teacher, student, strict=True):
            with torch.no_grad():
                target = _log_relations(theirs, heads, real)
            distances = (target.exp() * (target - _log_relations(ours, heads, real))).sum(-1).mean(1)
            total = total + (distances if real is None else distances * real).sum()
    return total / real_tokens


def _log_relations(x: Tensor, heads: int, real: Tensor | None) -> Tensor:
    """log softmax(X Xᵀ / √d) of each relation head, float32 [batch, heads, length, length]."""
    split = x.float().unflatten(-1, (relation_heads(x.shape[-1], heads), -1)).transpose(1, 2)
    products = split @ split.transpose(2, 3) * split.shape[-1] ** -0.5
    if real is not None:
        products = products.masked_fill(real[:, None, None, :] == 0, HIDDEN)
    return products.log_softmax(-1)
