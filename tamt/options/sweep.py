"""The options of `tamt sweep`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tamt.options.base import Options
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class SweepOptions(Options):
    """Run all searches and fine-tunings of a study. Finished runs are kept, interrupted ones continued.

    Args:
        study: the YAML file of the study; docs/studies.md describes its keys, studies/ has examples.
        output: the folder for the runs and results.csv, instead of that in the study; by default a folder beside the
            study with its name.
        data_dir: GLUE's glue_data folder, instead of that in the study.
        engine: where to run: here runs one after the other in this process; processes runs several at a time on this
            machine, on one GPU too; ray runs many at a time on a Ray cluster.
        cores: the CPU cores per run with processes and ray, by default 1; on a Ray cluster with GPUs a run takes one
            GPU instead.
        workers: how many runs at a time with processes; by default as many as the cores allow.
        dry_run: only list the runs, with their status and estimated time.
        redo: move runs by another version or with other settings to aside/, and run them again.
    """

    study: Path
    output: Path | None = None
    data_dir: Path | None = None
    engine: Literal["here", "processes", "ray"] = "here"
    cores: int | None = None
    workers: int | None = None
    dry_run: bool = False
    redo: bool = False

    def check(self) -> None:
        """Check the options together. Raises UserError if they cannot work."""
        if self.workers is not None and self.engine != "processes":
            raise UserError(
                f"--workers {self.workers} has no meaning with --engine {self.engine}; add --engine processes"
            )
        if self.cores is not None and self.engine == "here":
            raise UserError(f"--cores {self.cores} has no meaning with --engine here; add --engine processes")
