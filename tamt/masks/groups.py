"""The groups of a structured mask, and where their members lie in a model.

No list of families says so: the configuration of a model is given another size, and the parameters of such a model,
which takes no memory, show where that size is.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from tamt.masks.masking import stacks_of
from tamt.runtime.errors import UserError
from tamt.runtime.structure import kind_of

FFN_SIZES = ("intermediate_size", "hidden_dim")
"""What a configuration calls the number of intermediate neurons."""
LIKE_HIDDEN = ("embedding_size", "pooler_hidden_size")
"""Sizes that are that of the hidden states in most models of a family; where they are, they shrink with it."""
LIKE_HEADS = ("num_key_value_heads",)


class Cut(NamedTuple):
    """A dimension of a parameter whose entries are members of the groups of a mask.

    Entry i belongs to group ⌊i / width⌋ modulo the number of groups: a head has `width` neighbours, and where one
    matrix makes queries, keys and values, each of the three has its members.
    """

    mask: str
    parameter: str
    dimension: int
    width: int = 1

    def spread(self, groups: Tensor, entries: int) -> Tensor:
        """The values [entries] of the members for values [number of groups]; differentiable."""
        return groups.repeat_interleave(self.width).repeat(entries // (len(groups) * self.width))

    def collect(self, members: Tensor, groups: int) -> Tensor:
        """The sum over the members [entries] of each group, [groups]."""
        return members.reshape(-1, groups, self.width).sum((0, 2))


@dataclass
class Groups:
    """The groups of some kinds in a model.

    Attributes:
        sizes: the number of groups by the name of the mask.
        layers: the names of the layers in the model.
        cuts: where the members lie, for all kinds but layers; parameters by their names in the model's state.
    """

    sizes: dict[str, int]
    layers: list[str]
    cuts: list[Cut] = field(default_factory=list)

    def layer_of(self, name: str) -> str | None:
        """The layer that a parameter or a module is in, by their names in the model."""
        return next((layer for layer in self.layers if name.startswith(f"{layer}.")), None)

    def check(self, masks: Mapping[str, Tensor]) -> None:
        """Check that masks are for these groups. Raises UserError, which names the first that is not."""
        for name in [*self.sizes, *masks]:
            shape = list(masks[name].shape) if name in masks else []
            if shape != [self.sizes.get(name)]:
                own = f"{self.sizes[name]} groups" if name in self.sizes else "none"
                raise UserError(
                    f"the mask is for another model: of {name} it has {shape[0] if shape else 'none'} where the model "
                    f"has {own}; give the mask with the model it was found in"
                )


def find_groups(model: PreTrainedModel, kinds: Iterable[str]) -> Groups:
    """The groups of these kinds in a model with any head, or none.

    Raises:
        UserError: the model has no such groups.
    """
    layers = layers_of(model)
    groups = Groups({}, layers)
    for kind in dict.fromkeys(kinds):
        if kind == "layers":
            groups.sizes["layers"] = len(layers)
        elif kind == "ffn":
            _add_neurons(groups, model)
        else:
            _add_width(groups, model, kind)
    return groups


def find_groups_of(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> Groups:
    """The groups of masks in a model. Raises UserError if the masks are for another model, see also `find_groups`."""
    groups = find_groups(model, map(kind_of, masks))
    groups.check(masks)
    return groups


def layers_of(model: PreTrainedModel) -> list[str]:
    """The names of the layers of a model. Raises UserError if they are not one list of layers, each used once."""
    stacks = stacks_of(model)
    if len(stacks) != 1 or len(stacks[0]) != model.config.num_hidden_layers:
        raise UserError(
            f"the layers of {type(model).__name__} are shared, or lie in several lists, so no structure can "
            "prune groups of them; leave it out, or choose another model"
        )
    (name,) = (name for name, module in model.named_modules() if module is stacks[0])
    return [f"{name}.{number}" for number in range(len(stacks[0]))]


def hidden_sizes(config: PreTrainedConfig, size: int) -> dict[str, int]:
    """What a configuration says instead if its hidden states have another size."""
    alike = [name for name in LIKE_HIDDEN if getattr(config, name, None) == config.hidden_size]
    return dict.fromkeys(["hidden_size", *alike], size)


def head_sizes(config: PreTrainedConfig, heads: int) -> dict[str, int]:
    """What a configuration says instead if its layers have another number of heads."""
    alike = [name for name in LIKE_HEADS if getattr(config, name, None) == config.num_attention_heads]
    return dict.fromkeys(["num_attention_heads", *alike], heads)


def ffn_size(config: PreTrainedConfig) -> str | None:
    """What a configuration calls the number of intermediate neurons; None if it does not say it."""
    return next((name for name in FFN_SIZES if isinstance(getattr(config, name, None), int)), None)


def with_sizes(config: PreTrainedConfig, sizes: Mapping[str, int]) -> PreTrainedConfig:
    """A copy of a configuration with other sizes."""
    other = copy.deepcopy(config)
    for name, size in sizes.items():
        setattr(other, name, size)
    return other


def _add_neurons(groups: Groups, model: PreTrainedModel) -> None:
    name = ffn_size(model.config)
    if name is None:
        raise _none_of("ffn", model)
    neurons = getattr(model.config, name)
    masks = {layer: f"ffn.{number}" for number, layer in enumerate(groups.layers)}
    of_layers = {
        member: layer for member in _grown(model, {name: 2 * neurons}) if (layer := groups.layer_of(member[0]))
    }
    if {*of_layers.values()} != masks.keys():
        raise _none_of("ffn", model)
    groups.cuts += [Cut(masks[layer], *member) for member, layer in of_layers.items()]
    groups.sizes |= dict.fromkeys(masks.values(), neurons)


def _add_width(groups: Groups, model: PreTrainedModel, kind: str) -> None:
    """Add heads, or entries of the hidden states.

    A model of twice as many heads of the same width shows both. In the matrices of the attention both dimensions grow:
    the last one reads all heads, the others make them.
    """
    config, state = model.config, model.state_dict()
    heads = getattr(config, "num_attention_heads", 0)
    sizes = hidden_sizes(config, 2 * config.hidden_size)
    grown = _grown(model, sizes | head_sizes(config, 2 * heads) if heads else sizes)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    square = [name for name in linears if {(f"{name}.weight", 0), (f"{name}.weight", 1)} <= grown]
    of_heads: list[tuple[str, int]] = []
    for number, layer in enumerate(groups.layers):
        *makers, reader = [name for name in square if groups.layer_of(name) == layer] or [""]
        made = [(f"{name}.{part}", 0) for name in makers for part in ("weight", "bias")]
        members = [member for member in [*made, (f"{reader}.weight", 1)] if member in grown]
        of_heads += members
        if kind == "heads":
            width = state[f"{reader}.weight"].shape[1] // heads if reader and heads else 0
            if not width or any(state[name].shape[dimension] % (heads * width) for name, dimension in members):
                raise _none_of(kind, model)
            groups.sizes[f"heads.{number}"] = heads
            groups.cuts += [Cut(f"heads.{number}", *member, width) for member in members]
    if kind == "hidden":
        groups.sizes["hidden"] = config.hidden_size
        groups.cuts += [Cut("hidden", *member) for member in sorted(grown.difference(of_heads))]


def _grown(model: PreTrainedModel, sizes: Mapping[str, int]) -> set[tuple[str, int]]:
    """The parameters, and their dimensions, that grow where the configuration of a model has other sizes."""
    with torch.device("meta"):
        other = type(model)(with_sizes(model.config, sizes)).state_dict()
    return {
        (name, dimension)
        for name, tensor in model.state_dict().items()
        for dimension, size in enumerate(tensor.shape)
        if name in other and other[name].shape[dimension] != size
    }


def _none_of(kind: str, model: PreTrainedModel) -> UserError:
    return UserError(
        f"the model ({type(model).__name__}) has no {kind} that a structure could prune, or shares them; leave {kind} "
        "out, or choose another model"
    )
