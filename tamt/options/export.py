"""The options of `tamt export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tamt.options.base import Options
from tamt.runtime.choices import Values
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class ExportOptions(Options):
    """Write a subnetwork in Hugging Face form, dense or as a sparse file.

    With a mask this is m ⊙ θ0, with the MLM head where the checkpoint has one; its decoder stays the dense pre-trained
    embedding, as in mask training, so the weights are not tied. Without one it is the model as it is.

    Args:
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base"; without a mask the run folder of
            tamt finetune, or the folder of any model with zeros.
        output: new folder for the model and its tokenizer.
        mask: the ticket: a mask file, a run folder of tamt train, or hub:USER/REPO; without one the zeros of the model
            are its own.
        format: dense, which transformers opens; sparse, which tamt.load_sparse and all commands open; or prune, the
            state dict of a model pruned by torch.nn.utils.prune: for each pruned weight the pre-trained one and the
            mask, as weight_orig and weight_mask.
        shrink: take away the groups that a mask of tamt train --structure prunes, instead of setting weights to zero: a
            smaller model of the same class.
        values: type of the numbers in a sparse file; by default float32, which is exact.
    """

    model: str
    output: Path
    mask: Path | None = None
    format: Literal["dense", "sparse", "prune"] = "dense"
    shrink: bool = False
    values: Values | None = None

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded. Raises UserError."""
        if self.values is not None and self.format != "sparse":
            raise UserError("--values is for --format sparse; leave it out, or add --format sparse")
        if self.shrink and (self.mask is None or self.format != "dense"):
            lacks = "needs a --mask" if self.mask is None else f"gives a dense model, not one of --format {self.format}"
            raise UserError(f"--shrink {lacks}; {'give it' if self.mask is None else 'leave one of them out'}")
        if self.mask is None and self.format == "prune":
            raise UserError("--mask is missing: --format prune writes a mask beside the weights; give one")
