"""The prunable matrices of a model, and masks for them."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.runtime.choices import Ranking, parse_pattern
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure, structure_of
from tamt_kernels.backend.checks import FLOAT_TYPES

Sparsity = float | tk.Pattern | Structure
"""How much masks prune: a share of zeros of each matrix, all but n of each m neighbours, or a share of groups."""

Masks = dict[str, Tensor]
"""A mask for each prunable matrix: a bool tensor of its shape, True where the weight is kept. The names are those in
the model without its head (`encoder.layer.0.attention.self.query.weight`), so a mask fits the model under any head.
The masks of a structure have an entry per group instead, see `tamt.masks.groups`."""


class Masked(Protocol):
    """What has a score, which trains, and the mask that follows from it."""

    score: nn.Parameter

    @property
    def mask(self) -> Tensor:
        """The mask, bool."""
        ...


MaskedModule = tk.MaskedLinear | tk.MaskedEmbedding
PrunableModule = nn.Linear | nn.Embedding | MaskedModule

POOLER = "pooler.dense"


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head. Raises UserError if it is no model of transformers, such as a name or peft's."""
    if hasattr(model, "merge_and_unload"):
        raise UserError(
            f"the model ({type(model).__name__}) has adapters of peft around its matrices; apply a ticket before "
            "peft.get_peft_model, and merge the adapters by ticket.merge_lora(model)"
        )
    if not hasattr(model, "base_model") or not hasattr(model, "config"):
        raise UserError(
            f"a model of transformers is wanted, not a {type(model).__name__}; load it with from_pretrained, or give "
            "the one inside a wrapper"
        )
    return model.base_model


def prunable_modules(model: PreTrainedModel, pooler: bool = False, embedding: bool = True) -> dict[str, PrunableModule]:
    """The modules that hold the prunable matrices of `model` (paper 3.2), by name without the head's prefix.

    These are the word embedding and every `nn.Linear` in the layers: for BERT-base, 73 matrices (query, key, value,
    attention output, FFN in and FFN out of 12 layers, and the embedding). `pooler` adds the pooler, if there is one;
    without `embedding` the word embedding is left out.

    Raises:
        UserError: see `encoder_of`; or the model has no word embedding, no stack of layers with `nn.Linear` matrices,
            or a decoder.
    """
    encoder = encoder_of(model)
    names = {module: name for name, module in encoder.named_modules()}
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"the model ({type(model).__name__}) has a decoder beside its encoder, which is not supported; "
            "choose an encoder of the BERT family"
        )
    try:
        words = encoder.get_input_embeddings()
    except NotImplementedError:  # such as models that hash characters
        words = None
    layers = [module for stack in stacks_of(model) for module in stack.modules()]
    linears = [module for module in layers if isinstance(module, nn.Linear | tk.MaskedLinear)]
    if not isinstance(words, nn.Embedding | tk.MaskedEmbedding) or not linears:
        raise UserError(
            f"the model ({type(model).__name__}) has no prunable matrix: no stack of {model.config.num_hidden_layers} "
            "layers of nn.Linear under a word embedding was found in it; choose an encoder of the BERT family"
        )
    found: dict[str, PrunableModule] = {names[module]: module for module in [*([words] if embedding else []), *linears]}
    if pooler and POOLER in names.values():
        found[POOLER] = encoder.get_submodule(POOLER)
    return found


def stacks_of(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The stacks of layers of `model`: the outermost lists of modules, as long as its configuration has layers.

    Most encoders have one. XLM has separate ones for attention, feed-forward networks and LayerNorms. ALBERT's is a
    list of groups of layers, each of which runs several times.
    """
    length = getattr(model.config, "num_hidden_groups", model.config.num_hidden_layers)
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    inner = {module for stack in lists for module in stack.modules() if module is not stack}
    return [stack for stack in lists if stack not in inner and len(stack) == length]


def prunable_weights(model: PreTrainedModel, pooler: bool = False, embedding: bool = True) -> dict[str, Tensor]:
    """The prunable matrices of `model` by the names of masks; see `prunable_modules`."""
    return {f"{name}.weight": module.weight for name, module in prunable_modules(model, pooler, embedding).items()}


def share_of_zeros(weights: Iterable[Tensor]) -> float:
    """The share of zeros over all these matrices, counted."""
    matrices = list(weights)
    return sum(int((matrix == 0).sum()) for matrix in matrices) / sum(matrix.numel() for matrix in matrices)


def keep_of(entries: int, sparsity: float) -> int:
    """The number of `entries` that a mask of this sparsity keeps: n − ⌊n·s⌋, with s as a decimal number.

    As a float, 29 % of 100 would be 28.999999999999996, which rounds down to 28.
    """
    return entries - int(entries * Decimal(repr(sparsity)))


def pattern_of(text: str | None) -> tk.Pattern | None:
    """The pattern that an option or a mask file names, such as "2:4". Raises UserError, see `parse_pattern`."""
    return None if text is None else tk.Pattern(*parse_pattern(text))


def sparsity_from(pattern: str | None, structure: str | None, share: float) -> Sparsity:
    """How much masks prune, by options or a mask file: the pattern or the structure, if there is one, else the share.

    Raises:
        UserError: see `parse_pattern` and `Structure.parse`.
    """
    return pattern_of(pattern) or structure_of(structure) or share


def check_pattern_fits(weights: Mapping[str, Tensor], pattern: tk.Pattern) -> None:
    """Check that each matrix has whole groups. Raises UserError, which names the first that has not."""
    for name, weight in weights.items():
        if weight.shape[-1] % pattern.m:
            raise UserError(
                f"the pattern {pattern} does not fit the matrix {name}, whose rows of {weight.shape[-1]} entries are "
                f"not groups of {pattern.m}; give a pattern whose second number divides {weight.shape[-1]}"
            )


def share_of(name: str, sparsity: float | Structure) -> float:
    """The share of zeros of the mask `name`. Raises ValueError if a structure has no such mask."""
    return sparsity.share(name) if isinstance(sparsity, Structure) else sparsity


def is_exact(name: str, mask: Tensor, sparsity: Sparsity) -> bool:
    """Whether the mask `name` keeps exactly `keep_of` entries, or exactly the pattern in each group."""
    if isinstance(sparsity, tk.Pattern):
        whole = mask.shape[-1] % sparsity.m == 0
        return whole and bool(mask.reshape(-1, sparsity.m).sum(1).eq(sparsity.n).all())
    return int(mask.sum()) == keep_of(mask.numel(), share_of(name, sparsity))


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """The share of zeros over all masks together, between 0 and 1."""
    entries = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / entries


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: Sparsity) -> Masks:
    """The masks that keep the largest |W| of each matrix (OMP, paper 3.2), or of each group; see `top_masks`.

    Weights in float64 are ranked as float32. Raises UserError if a weight is NaN.
    """
    scores = {}
    for name, weight in weights.items():
        if weight.isnan().any():
            raise UserError(f"{name} has NaN entries, which have no magnitude; check the checkpoint")
        scores[name] = weight.detach() if weight.dtype in FLOAT_TYPES else weight.detach().float()
    return top_masks(scores, sparsity, "abs")


def top_masks(scores: Mapping[str, Tensor], sparsity: Sparsity, ranking: Ranking = "signed") -> Masks:
    """The masks that keep the largest scores, exactly `keep_of` of each tensor or n of each group of a pattern.

    Ties are broken by lower flat index.
    """
    if isinstance(sparsity, tk.Pattern):
        return {name: tk.pattern_mask(score, sparsity, ranking=ranking) for name, score in scores.items()}
    keep = [keep_of(score.numel(), share_of(name, sparsity)) for name, score in scores.items()]
    thresholds = tk.topk_threshold(list(scores.values()), keep, ranking=ranking)
    return {
        name: tk.binarize(score, value, cut, ranking=ranking)
        for (name, score), value, cut in zip(scores.items(), thresholds.values, thresholds.cuts, strict=True)
    }


def random_masks(weights: Mapping[str, Tensor], sparsity: Sparsity, seed: int) -> Masks:
    """Masks that keep a random subset of exact size of each matrix, or of each group of a pattern.

    They are drawn on the CPU, so they are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(sparsity, tk.Pattern):
        drawn = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
        return {name: mask.to(weights[name].device) for name, mask in top_masks(drawn, sparsity).items()}
    masks = {}
    for name, weight in weights.items():
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        keep = keep_of(weight.numel(), share_of(name, sparsity))
        mask[torch.randperm(weight.numel(), generator=generator)[:keep]] = True
        masks[name] = mask.view(weight.shape).to(weight.device)
    return masks


@torch.no_grad()
def apply_masks(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of `model` to zero in place: the subnetwork f(·; m ⊙ θ0) as a plain dense model.

    A mask for the pooler is ignored if the model has none (RoBERTa's classifier, any model for MLM). A matrix without a
    mask stays dense, which is reported.

    Raises:
        UserError: see `check_fits`.
    """
    if dense := check_fits(masks, model):
        named = ", ".join(dense[:3]) + (f" and {len(dense) - 3} more" if len(dense) > 3 else "")
        say(f"the mask leaves {named} out: {'these stay' if len(dense) > 1 else 'this stays'} dense")
    for name, weight in masked_weights(model, masks).items():
        weight.masked_fill_(~masks[name].to(weight.device), 0)


def masked_weights(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The prunable weights of `model` that have a mask, by the names of masks.

    A mask for the pooler is ignored if the model has none.
    """
    weights = prunable_weights(model, pooler=True)
    return {name: weight for name, weight in weights.items() if name in masks}


def packed_masks(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The prunable weights of `model`, each with its mask at one bit per entry, as `tk.prune_` takes it."""
    weights = masked_weights(model, masks)
    return [(weight, tk.pack_mask(masks[name].to(weight.device))) for name, weight in weights.items()]


def wrap(
    model: PreTrainedModel,
    masks: Mapping[str, Tensor],
    ranking: Ranking = "signed",
    pattern: tk.Pattern | None = None,
) -> dict[str, MaskedModule]:
    """Put trainable masks on `model`: each prunable module with a mask becomes a masked module that starts from it.

    Its weights are frozen and shared, not copied. All other parameters stay as they are. The masks keep as many entries
    of each matrix as they have ones, or the `pattern`.

    Returns:
        The masked modules by the names of `prunable_weights`.
    """
    masked: dict[str, MaskedModule] = {}
    for name, module in prunable_modules(model).items():
        if f"{name}.weight" not in masks:
            continue
        mask = masks[f"{name}.weight"]
        keep = pattern or int(mask.sum())
        new: MaskedModule
        if isinstance(module, nn.Embedding):
            new = tk.MaskedEmbedding.from_embedding(module, keep, mask=mask, ranking=ranking)
        else:
            assert isinstance(module, nn.Linear), f"{name} is masked already"
            new = tk.MaskedLinear.from_linear(module, keep, mask=mask, ranking=ranking)
        model.base_model.set_submodule(name, new)
        masked[f"{name}.weight"] = new
    return masked


def masks_of(masked: Mapping[str, Masked]) -> Masks:
    """The current masks of masked modules or gates."""
    return {name: module.mask for name, module in masked.items()}


def check_fits(masks: Mapping[str, Tensor], model: PreTrainedModel) -> list[str]:
    """`check_shapes_fit` for masks."""
    return check_shapes_fit({name: tuple(mask.shape) for name, mask in masks.items()}, model)


def check_shapes_fit(shapes: Mapping[str, tuple[int, ...]], model: PreTrainedModel) -> list[str]:
    """Check that masks of these names and shapes are for prunable matrices of `model`.

    Returns:
        The matrices without a mask.

    Raises:
        UserError: a matrix is unknown or has another shape; the message names up to three.
    """
    shapes = dict(shapes)
    if all(len(shape) == 1 for shape in shapes.values()):
        raise UserError(
            f"the mask prunes groups of weights ({', '.join(list(shapes)[:3])}); shrink the model by tamt export "
            "--shrink, or give a mask of single weights"
        )
    weights = prunable_weights(model, pooler=f"{POOLER}.weight" in shapes)
    if f"{POOLER}.weight" not in weights:
        shapes.pop(f"{POOLER}.weight", None)
    differs = [f"{name} is not a matrix of the model" for name in shapes if name not in weights]
    differs += [
        f"{name} is {list(shapes[name])} where the model has {list(weight.shape)}"
        for name, weight in weights.items()
        if name in shapes and tuple(shapes[name]) != tuple(weight.shape)
    ]
    missing = [name for name in weights if name not in shapes]
    if differs:
        differs = [f"{name} is missing" for name in missing] + differs
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise UserError(
            f"the mask is for another model than {type(model).__name__} ({model.name_or_path}): "
            f"{'; '.join(differs[:3])}{more}; give the mask with the model it was found in"
        )
    return missing
