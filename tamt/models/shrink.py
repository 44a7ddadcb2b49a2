"""From a structured ticket to a smaller model of the same class, which plain transformers opens."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tamt.masks.gates import put_gates
from tamt.masks.groups import Groups, ffn_size, find_groups, find_groups_of, head_sizes, hidden_sizes, with_sizes
from tamt.masks.masking import Masks, apply_masks, keep_of, prunable_weights
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure, kind_of

PER_LAYER = ("layer_types", "attention_window")
"""What a configuration lists for each layer."""
TOKENS = 16
"""Tokens on which a shrunk model is compared with the masked one."""
TOLERANCE = 1e-4
"""Of a value relative to the largest; rounding gives 1e-6, a wrong order of heads 1e-1."""


MAY_BE_ZEROS = frozenset({"ffn", "heads"})
"""Kinds of groups that give nothing to the model where the matrix that reads them is zero."""


class NoStockConfigError(UserError):
    """No configuration of the model's class describes what a structured mask keeps."""


def shrink(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> PreTrainedModel:
    """The model without the groups that a structured mask prunes: of the same class, with a smaller configuration.

    It computes what the masked model (`tamt.masks.gates`) does, to rounding, which is checked on a few tokens.

    Args:
        model: with any head, or none; it does not change.
        masks: bool [groups] by name, see `tamt.masks.groups`.

    Returns:
        A model with its own memory on the same device, of the same type, in the same mode.

    Raises:
        NoStockConfigError: no configuration has these sizes, such as fewer heads under as many hidden entries.
        UserError: the mask is for another model.
    """
    groups = find_groups_of(model, masks)
    config = _smaller_config(model.config, masks)
    state = _kept_state(model, groups, masks)
    kind = type(model)
    try:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
        type(config).from_dict(config.to_dict())  # which opening it will do, and some configurations check themselves
    except Exception as error:  # of any model's own code
        raise NoStockConfigError(_why_not(kind.__name__, masks, " ".join(str(error).split())[:200])) from error
    if differing := [name for name in state | shapes if name not in shapes or state[name].shape != shapes[name]]:
        raise NoStockConfigError(_why_not(kind.__name__, masks, f"{differing[0]} has another shape"))
    with torch.random.fork_rng():
        smaller = kind(config).to(model.device, model.dtype).train(model.training)
    smaller.load_state_dict(state)
    _check_same(model, smaller, masks)
    return smaller


def as_subnetwork(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> tuple[PreTrainedModel, Masks]:
    """A structured ticket as a model to train: shrunk, or with zeros where only the heads have no stock configuration.

    Args:
        model: with any head, or none; it gets the zeros in place.
        masks: bool [groups] by name.

    Returns:
        The shrunk model and no masks; or the same model, and the masks of its matrices that keep its zeros.

    Raises:
        NoStockConfigError: the model can neither be shrunk nor be given zeros that compute the same.
        UserError: the mask is for another model.
    """
    try:
        return shrink(model, masks), {}
    except NoStockConfigError:
        if not MAY_BE_ZEROS.issuperset(map(kind_of, masks)):
            raise
    zeros = zeros_for(model, masks)
    apply_masks(model, zeros)
    return model, zeros


def zeros_for(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> Masks:
    """The masks of `matrix_masks`, if their zeros let a model compute what the masked model does; it does not change.

    Raises:
        NoStockConfigError: they do not, as for layers and hidden entries.
        UserError: the mask is for another model.
    """
    check_may_be_zeros(masks)
    zeros = matrix_masks(model, masks)
    subnetwork = copy.deepcopy(model)
    apply_masks(subnetwork, zeros)
    _check_same(model, subnetwork, masks)
    return zeros


def check_may_be_zeros(masks: Iterable[str]) -> None:
    """Check that the groups of these masks can be zeros of matrices. Raises NoStockConfigError if not."""
    if others := {*map(kind_of, masks)} - MAY_BE_ZEROS:
        raise NoStockConfigError(
            f"pruned {' and '.join(sorted(others))} cannot be zeros of matrices; shrink the model instead, by tamt "
            "export --shrink or ticket.shrink(model)"
        )


def matrix_masks(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> Masks:
    """Masks of all prunable matrices of a model, False for the members of pruned groups."""
    weights = prunable_weights(model)
    names = {weight: name for name, weight in weights.items()}
    zeros = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    for cut in find_groups_of(model, masks).cuts:
        name = names.get(model.get_parameter(cut.parameter))
        if name is not None:
            kept = cut.spread(masks[cut.mask].cpu(), zeros[name].shape[cut.dimension])
            zeros[name] &= kept if cut.dimension == 1 else kept[:, None]
    return zeros


def check_structure_fits(model: PreTrainedModel, structure: Structure) -> None:
    """Check that a ticket of this structure can be used, by a mask that keeps the last groups of each kind.

    Raises:
        UserError: the model has no such groups, none of a kind would be pruned, or see `as_subnetwork`.
    """
    sizes = find_groups(model, structure.kinds).sizes
    keep = {name: keep_of(size, structure.share(name)) for name, size in sizes.items()}
    for name, size in sizes.items():
        if keep[name] == size:
            raise UserError(
                f"--structure {structure} prunes none of the {size} {kind_of(name)}; raise its sparsity, or leave it "
                "out"
            )
    as_subnetwork(copy.deepcopy(model), {name: torch.arange(size) >= size - keep[name] for name, size in sizes.items()})


def _smaller_config(config: PreTrainedConfig, masks: Mapping[str, Tensor]) -> PreTrainedConfig:
    """The configuration with the sizes that a mask keeps."""
    sizes: dict[str, int] = {}
    for name, mask in masks.items():
        kept, kind = int(mask.sum()), kind_of(name)
        if kind == "ffn":
            sizes[str(ffn_size(config))] = kept
        elif kind == "heads":
            sizes |= head_sizes(config, kept)
        elif kind == "hidden":
            sizes |= hidden_sizes(config, kept)
        else:
            sizes["num_hidden_layers"] = kept
    smaller = with_sizes(config, sizes)
    for name in PER_LAYER if "layers" in masks else ():
        listed = getattr(config, name, None)
        if isinstance(listed, list) and len(listed) == len(masks["layers"]):
            kept_layers = zip(listed, masks["layers"].tolist(), strict=True)
            setattr(smaller, name, [value for value, keep in kept_layers if keep])
    return smaller


def _kept_state(model: PreTrainedModel, groups: Groups, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model without what is pruned; layers are numbered anew."""
    state = model.state_dict()
    for cut in groups.cuts:
        tensor = state[cut.parameter]
        kept = cut.spread(masks[cut.mask].to(tensor.device), tensor.shape[cut.dimension])
        state[cut.parameter] = tensor.index_select(cut.dimension, kept.nonzero().squeeze(1))
    kept_layers = masks["layers"].nonzero().squeeze(1).tolist() if "layers" in masks else range(len(groups.layers))
    numbers = {groups.layers[old]: groups.layers[new] for new, old in enumerate(kept_layers)}
    renamed = {}
    for name, tensor in state.items():
        layer = groups.layer_of(name)
        if layer is None:
            renamed[name] = tensor
        elif layer in numbers:
            renamed[f"{numbers[layer]}{name.removeprefix(layer)}"] = tensor
    return renamed


def _why_not(kind: str, masks: Mapping[str, Tensor], reason: str) -> str:
    by_kind = {kind_of(name): mask for name, mask in masks.items()}
    kinds = by_kind.keys()
    sizes = " and ".join(f"{int(mask.sum())} of {len(mask)} {kind}" for kind, mask in by_kind.items())
    remedy = "choose another structure"
    if kinds & {"heads", "hidden"}:
        remedy = "prune heads and hidden at one sparsity that divides both, as heads:0.5,hidden:0.5 does in most models"
    if MAY_BE_ZEROS.issuperset(kinds):
        remedy += (
            f", or set the weights of pruned {' and '.join(kinds)} to zero, without --shrink or by ticket.apply(model)"
        )
    return f"no configuration of {kind} has {sizes} ({reason}); {remedy}"


@torch.no_grad()
def _check_same(model: PreTrainedModel, subnetwork: PreTrainedModel, masks: Mapping[str, Tensor]) -> None:
    """Check that a subnetwork computes what the masked model does. Raises NoStockConfigError if not."""
    ids = torch.arange(TOKENS, device=model.device)[None] % model.config.vocab_size
    masked, subnetwork = (copy.deepcopy(each).float().eval() for each in (model, subnetwork))  # whatever their types
    put_gates(masked, masks)
    expected = masked(input_ids=ids, return_dict=True)[0]
    found = subnetwork(input_ids=ids, return_dict=True)[0]
    if expected.shape != found.shape:
        expected = expected[..., masks["hidden"].to(expected.device)]
    if not (expected - found).abs().max() <= TOLERANCE * expected.abs().max():
        raise NoStockConfigError(
            f"{type(model).__name__} without these {' and '.join({*map(kind_of, masks)})} does not compute what the "
            "masked model does, as it uses them in a way that is not known here; choose another structure"
        )
