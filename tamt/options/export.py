"""The options of `tamt export`."""

from dataclasses import dataclass
from pathlib import Path

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
    """

    model: str
    mask: Path
    output: Path
