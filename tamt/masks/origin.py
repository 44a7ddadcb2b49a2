"""The model that a mask names, and another of equal shapes that it is applied to."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from tamt.masks.masking import encoder_of, masked_weights
from tamt.runtime.console import say

HEADS_OF_TASKS = ("Classification", "QuestionAnswering", "MultipleChoice")
"""Parts of the names of classes that a fine-tuned model has in its configuration."""


def say_if_of_another(masks: Mapping[str, Tensor], named: str, model: PreTrainedModel) -> None:
    """Say that a mask was found in another model than `model`, where their folders show it; shapes may not.

    A model has many names, so nothing is said of a hub name, a folder that was moved, one of the same last part, a
    fine-tuned model, or one that has the zeros of the mask already.

    Args:
        masks: bool, as the file has them.
        named: the model that the mask file names.
        model: before the masks are applied.
    """
    own = encoder_of(model).name_or_path
    folders = [Path(name).resolve() for name in (named, own) if name and (Path(name) / "config.json").is_file()]
    if len(folders) < 2 or folders[0].name == folders[1].name:
        return
    fine_tuned = any(head in kind for kind in model.config.architectures or () for head in HEADS_OF_TASKS)
    if not fine_tuned and not _has_zeros(model, masks):
        say(
            f"the mask was found in {named}, and it is applied to {own}; if these are not the same weights, give the "
            "mask of that model"
        )


def _has_zeros(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> bool:
    """Whether all that the masks prune is zero; no if they prune groups, or have other shapes."""
    weights = masked_weights(model, masks)
    return bool(weights) and all(
        weight.shape == masks[name].shape and not weight.detach()[~masks[name].to(weight.device)].any()
        for name, weight in weights.items()
    )
