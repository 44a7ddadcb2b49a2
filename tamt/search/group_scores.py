"""The importance of the groups of a structure: the norm of the importance of their members."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tamt.masks.groups import Groups, find_groups
from tamt.masks.masking import Masks, Sparsity, magnitude_masks, prunable_weights, top_masks
from tamt.runtime.choices import Scores
from tamt.runtime.structure import Structure


@torch.no_grad()
def group_importance(
    encoder: PreTrainedModel, structure: Structure, importance: Mapping[str, Tensor], scores: Scores = "magnitude"
) -> dict[str, Tensor]:
    """The norm over the members of each group.

    The members of a neuron or a head are its rows in the matrices that make it and its columns in the one that reads
    it; those of a hidden entry are its row or column in every matrix; those of a layer are all its matrices.

    Args:
        encoder: the dense model, without its head.
        structure: the kinds of groups.
        importance: of each weight, by the names of `prunable_weights`.
        scores: what the importance is. By activation only the columns that read a group count, as their importance is
            what the group adds to the output of the matrix.

    Returns:
        float32 [groups] by the names of masks.
    """
    groups = find_groups(encoder, structure.kinds)
    (embedding,) = prunable_weights(encoder).keys() - prunable_weights(encoder, embedding=False).keys()
    device = next(iter(importance.values())).device
    squares = {name: torch.zeros(size, device=device) for name, size in groups.sizes.items()}
    for cut in groups.cuts:
        values = importance.get(cut.parameter)
        if values is not None and (scores == "magnitude" or (cut.dimension == 1 and cut.parameter != embedding)):
            members = values.square().sum(1 - cut.dimension)
            squares[cut.mask] += cut.collect(members, len(squares[cut.mask]))
    if "layers" in squares:
        squares["layers"] = _of_layers(groups, importance)
    return {name: values.sqrt() for name, values in squares.items()}


def _of_layers(groups: Groups, importance: Mapping[str, Tensor]) -> Tensor:
    """The sum of squares over the matrices of each layer, [layers]."""
    totals = [
        sum(values.square().sum() for name, values in importance.items() if name.startswith(f"{layer}."))
        for layer in groups.layers
    ]
    return torch.stack([torch.as_tensor(total) for total in totals])


def omp_masks(encoder: PreTrainedModel, sparsity: Sparsity, weights: Mapping[str, Tensor]) -> Masks:
    """The masks of the largest |W| (OMP, paper 3.2), or of the groups of largest norm.

    Args:
        encoder: the dense model, without its head.
        sparsity: how much the masks prune.
        weights: its matrices to prune, by the names of `prunable_weights`.
    """
    if isinstance(sparsity, Structure):
        return top_masks(group_importance(encoder, sparsity, weights), sparsity)
    return magnitude_masks(weights, sparsity)
