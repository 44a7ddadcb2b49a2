"""The masked model of a structured mask, by gates: the definition of what a structured ticket computes.

With a mask g of zeros and ones:

- ffn: the input of the FFN's output layer is multiplied by g;
- heads: the input of the attention's output layer is multiplied by g, spread over each head;
- layers: layer i gives g_i · layer(x) + (1 − g_i) · x;
- hidden: every LayerNorm takes mean and variance over the kept entries and gives zeros elsewhere, and hidden states
  that do not come from a LayerNorm are multiplied by g.

The gradient of g_i is the sum over the members of its group: for the columns of a matrix, Σ dL/d(masked W) ⊙ W.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.groups import Cut, Groups, find_groups_of
from tamt.runtime.errors import UserError
from tamt.runtime.structure import kind_of
from tamt_kernels.nn import INITIAL_SCALE, INITIAL_THRESHOLD


class Gate(nn.Module):
    """A mask of groups, and the scores that rank the groups into it.

    `score` is float32 [groups], as in `tk.MaskedLinear`; `kept` is float32 [groups], 1 where a group is kept. After a
    change of the score `renew_gates` renews the mask.
    """

    kept: Tensor

    def __init__(self, mask: Tensor) -> None:
        """Start from a mask, bool [groups], and scores of two values (eq. 5)."""
        super().__init__()
        self.score = nn.Parameter(mask.float() * (INITIAL_SCALE * INITIAL_THRESHOLD))
        self.register_buffer("kept", mask.float())
        self.keep = int(mask.sum())

    @property
    def mask(self) -> Tensor:
        """The mask, bool, with `keep` ones."""
        return self.kept.bool()

    def forward(self) -> Tensor:
        """The mask as numbers; its gradient goes straight through to the score."""
        return self.kept + (self.score - self.score.detach())


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the kept entries of its input, which gives zeros elsewhere; made of an `nn.LayerNorm` in place."""

    _gates: tuple[Gate]  # in a tuple, as the gate is no module of the model

    @classmethod
    def put_on(cls, norm: nn.LayerNorm, gate: Gate) -> None:
        """Turn a LayerNorm into a masked one."""
        norm.__class__ = cls
        norm.__dict__["_gates"] = (gate,)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` [..., width] in float32, as autocast lets a LayerNorm do; return its type."""
        (gate,) = self._gates
        g = gate()
        x = input.float()
        mean = (x * g).sum(-1, keepdim=True) / gate.keep
        centred = (x - mean) * g
        variance = centred.square().sum(-1, keepdim=True) / gate.keep
        normal = centred * torch.rsqrt(variance + self.eps) * self.weight
        output = normal if self.bias is None else normal + self.bias * g
        return output if torch.is_autocast_enabled(input.device.type) else output.to(input.dtype)


def put_gates(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> dict[str, Gate]:
    """Put the gates of a structured mask on a model with any head, or none, in place.

    Parameters stay as they are. The gates are no modules of the model, so its state stays the same too.

    Args:
        model: changed for good; put no gates on it twice.
        masks: bool [groups] by name, see `tamt.masks.groups`.

    Returns:
        The gates by the names of the masks, on the device of the model.

    Raises:
        UserError: the model has no such groups, or norms of its hidden states that are not `nn.LayerNorm`.
    """
    groups = find_groups_of(model, masks)
    gates = {name: Gate(mask.to(model.device)) for name, mask in masks.items()}
    for cut in groups.cuts:
        name, _, parameter = cut.parameter.rpartition(".")
        module, gate = model.get_submodule(name), gates[cut.mask]
        if kind_of(cut.mask) == "hidden":
            _gate_hidden(module, name, parameter, cut, gate, groups)
        elif cut.dimension == 1:
            module.register_forward_pre_hook(partial(_gate_input, gate, cut))
    for number, name in enumerate(groups.layers):
        layer = model.get_submodule(name)
        # Before all other hooks: transformers' own read the hidden states.
        if "hidden" in gates:
            layer.register_forward_hook(partial(_hide, gates["hidden"]), prepend=True)
        if "layers" in gates:
            hook = partial(_gate_layer, gates["layers"], number)
            layer.register_forward_hook(hook, with_kwargs=True, prepend=True)
    return gates


@torch.no_grad()
def renew_gates(gates: Iterable[Gate]) -> None:
    """Renew the masks of gates after a change of their scores: exactly `keep` ones, ties broken by lower index.

    It does not wait for a GPU: there, a gate with a NaN score gets a mask of zeros.
    """
    gates = list(gates)
    thresholds = tk.topk_threshold([gate.score for gate in gates], [gate.keep for gate in gates], check_nan=False)
    for gate, value, cut in zip(gates, thresholds.values, thresholds.cuts, strict=True):
        gate.kept.copy_(tk.binarize(gate.score, value, cut))


def _gate_hidden(module: nn.Module, name: str, parameter: str, cut: Cut, gate: Gate, groups: Groups) -> None:
    """Put the gate of the hidden states on a module whose parameter is cut."""
    if isinstance(module, nn.LayerNorm):
        if parameter == "weight":
            MaskedLayerNorm.put_on(module, gate)
    elif "norm" in type(module).__name__.lower():
        raise UserError(
            f"{name} is a {type(module).__name__} and no nn.LayerNorm, so hidden entries cannot be pruned; leave "
            "hidden out of --structure, or choose another model"
        )
    elif isinstance(module, nn.Linear) and (parameter, cut.dimension) == ("weight", 0) and not groups.layer_of(name):
        module.register_forward_hook(partial(_gate_output, gate))  # in a layer a LayerNorm follows


def _gate_input(gate: Gate, cut: Cut, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *others = inputs
    return x * cut.spread(gate(), x.shape[-1]).to(x.dtype), *others


def _gate_output(gate: Gate, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * gate().to(output.dtype)


def _gate_layer(
    gate: Gate, number: int, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
) -> Any:
    x = inputs[0] if inputs else named["hidden_states"]
    g = gate()[number]
    return _with_first(output, lambda hidden: torch.lerp(x.to(hidden.dtype), hidden, g.to(hidden.dtype)))


def _hide(gate: Gate, module: nn.Module, inputs: Any, output: Any) -> Any:
    """Zero the pruned entries where no LayerNorm ends a layer; it has the gate of the entries that are read."""
    return _with_first(output, lambda hidden: hidden * gate.kept.to(hidden.dtype))


def _with_first(output: Any, change: Any) -> Any:
    """What a layer returns, with the hidden states, which come first, changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
