"""The options of `tamt sweep`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tamt.options.base import Options


@dataclass(frozen=True)
class SweepOptions(Options):
    """Do all searches and fine-tunings of a study, but for those that are done; continue the interrupted ones.

    Args:
        study: YAML file of the study; docs/studies.md lists its keys, studies/ has examples.
        output: folder of the runs and of results.csv, instead of the study's; by default named after it, beside it.
        data_dir: GLUE's glue_data folder, instead of the study's.
        engine: here does one run after the other in this process, ray many at a time on a Ray cluster or this machine.
        cores: CPU cores of a run under ray, where the cluster has no GPUs; with GPUs a run takes one.
        dry_run: only show the runs, with what is done and how long the others may take.
        redo: move runs that another version or other settings of the study did to aside/, and do them again.
    """

    study: Path
    output: Path | None = None
    data_dir: Path | None = None
    engine: Literal["here", "ray"] = "here"
    cores: int = 1
    dry_run: bool = False
    redo: bool = False
