"""The options of `tamt report`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.options.base import Options


@dataclass(frozen=True)
class ReportOptions(Options):
    """Draw the figures and tables of the paper for your own runs, and one page with all of them.

    Args:
        folder: a study, or any folder with run folders of tamt train and tamt finetune in it.
        output: folder for report.html, report.md, a PNG, a PDF and a CSV of each figure, a CSV of each table; by
            default the folder "report" in that of the study. An earlier report there is replaced.
    """

    folder: Path
    output: Path | None = None
