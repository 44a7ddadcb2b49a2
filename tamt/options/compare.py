"""The options of `tamt compare`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.options.base import Options
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class CompareOptions(Options):
    """Compare masks: similarity of each pair and sparsity, per matrix and over all, and the distance from OMP.

    Args:
        masks: two or more mask files of the same model.
        model: hub name or folder of that model, or "demo" or "demo-base", to measure the distance of each mask from
            its OMP mask of the same sparsity; without it an OMP mask among the masks serves.
        output: new folder for a heat map of the similarities, PNG and PDF, and CSV of them overall and by matrix.
    """

    masks: list[Path]
    model: str | None = None
    output: Path | None = None

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded. Raises UserError."""
        if len(self.masks) < 2:
            raise UserError("one mask cannot be compared; give two or more mask files")
