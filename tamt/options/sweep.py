"""The options of `tamt sweep`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tamt.options.base import Options


@dataclass(frozen=True)
class SweepOptions(Options):
    """Run all searches and fine-tunings of a study. Finished runs are kept, interrupted ones continued.

    Args:
        study: the YAML file of the study; docs/studies.md describes its keys, studies/ has examples.
        output: the folder for the runs and results.csv, instead of that in the study; by default a folder beside the
            study with its name.
        data_dir: GLUE's glue_data folder, instead of that in the study.
        engine: where to run: here runs one after the other in this process; ray runs many at a time on a Ray cluster or
            this machine.
        cores: the CPU cores per run with ray; on a cluster with GPUs a run takes one GPU instead.
        dry_run: only list the runs, with their status and estimated time.
        redo: move runs by another version or with other settings to aside/, and run them again.
    """

    study: Path
    output: Path | None = None
    data_dir: Path | None = None
    engine: Literal["here", "ray"] = "here"
    cores: int = 1
    dry_run: bool = False
    redo: bool = False
