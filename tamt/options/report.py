"""The options of `tamt report`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.options.base import Options


@dataclass(frozen=True)
class ReportOptions(Options):
    """Draw the paper's figures and tables for your own runs, and an HTML page with all of them.

    Args:
        folder: a study, or any folder that contains run folders of tamt train and tamt finetune.
        output: the folder for report.html, report.md, a PNG, PDF and CSV of each figure, and a CSV of each table; by
            default the folder "report" in that of the study. An earlier report there is replaced.
    """

    folder: Path
    output: Path | None = None
