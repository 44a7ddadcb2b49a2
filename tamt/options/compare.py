"""The options of `tamt compare`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.options.base import Options
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class CompareOptions(Options):
    """Compare masks: similarity and sparsity, per matrix and overall, and the distance from OMP.

    Args:
        masks: two or more mask files for the same model.
        model: the pre-trained model: a hub name, a folder, "demo" or "demo-base". It gives the OMP masks for the
            distances; by default an OMP mask of the same sparsity among the given masks does.
        output: a new folder for a heat map of the similarities (PNG, PDF) and CSV files, overall and per matrix.
    """

    masks: list[Path]
    model: str | None = None
    output: Path | None = None

    def check(self) -> None:
        """Check that there are two masks. Raises UserError."""
        if len(self.masks) < 2:
            raise UserError("one mask cannot be compared; give two or more mask files")
