"""The options of `tamt export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tamt.options.base import Options


@dataclass(frozen=True)
class ExportOptions(Options):
    """Write the subnetwork m ⊙ θ0 in Hugging Face form: dense, with zeros where the mask prunes.

    With the MLM head where the checkpoint has one; its decoder stays the dense pre-trained embedding, as in mask
    training, so the weights are not tied.

    Args:
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
        mask: mask file of the subnetwork.
        output: new folder for the model and its tokenizer.
        format: dense, which transformers opens, or prune, the state dict of a model pruned by torch.nn.utils.prune: for
            each pruned weight the pre-trained one and the mask, as weight_orig and weight_mask.
    """

    model: str
    mask: Path
    output: Path
    format: Literal["dense", "prune"] = "dense"
