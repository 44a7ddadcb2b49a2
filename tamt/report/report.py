"""`tamt report`: from a folder of runs to tables, figures and a page."""

import shutil
from pathlib import Path

from tamt.options.base import command
from tamt.options.report import ReportOptions
from tamt.report.drawing import columns_of, pyplot, write_pictures
from tamt.report.figure import Figure
from tamt.report.figures import figures_of
from tamt.report.masks import compare_masks, mask_figures
from tamt.report.page import GENERATOR, files_beside, markdown, page
from tamt.report.paper import paper_table, settings_table
from tamt.report.read import read_results
from tamt.report.style import told_apart
from tamt.report.tables import (
    correlation_table,
    differences_table,
    figure_table,
    kept_table,
    latencies_table,
    runs_table,
    scores_table,
    searches_table,
    skipped_table,
    won_back_table,
)
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import sync_folder, telling, write_atomically

PAGE = "report.html"
UNFINISHED = ".unfinished-report"
"""Folder in that of a report, in which a new one is built. A report that was interrupted leaves it."""


@command(ReportOptions)
def report(options: ReportOptions) -> dict:
    """Run `tamt report`."""
    target = options.output or options.folder / "report"
    if target.exists() and not target.is_dir():
        raise UserError(f"the output {target} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()) and not _is_report(target):
        raise UserError(
            f"the output folder {target} contains other files than a report, and nothing in it is overwritten; "
            "give a new --output"
        )
    pyplot()
    results = read_results(options.folder)
    groups = compare_masks(results)
    drawn = [*figures_of(results), *mask_figures(results, groups)]
    styled = iter(told_apart([item for item in drawn if isinstance(item, Figure)]))
    found = [next(styled) if isinstance(item, Figure) else item for item in drawn]
    found.sort(key=lambda item: (item.name if isinstance(item, Figure) else "z").startswith(("search", "layers")))
    figures = [item for item in found if isinstance(item, Figure)]
    tables = [
        scores_table(results),
        won_back_table(results),
        latencies_table(results),
        searches_table(results, groups),
        paper_table(results, groups, figures),
        differences_table(results),
        correlation_table(results),
        kept_table(groups),
        settings_table(results),
        runs_table(results),
        skipped_table(results),
    ]
    tables = [table for table in tables if table.rows]
    unfinished = target / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    for figure in figures:
        write_pictures(figure, unfinished, columns_of(figure.panels))
        write_atomically(unfinished / f"{figure.name}.csv", figure_table(figure).csv())
    for table in tables:
        write_atomically(unfinished / f"{table.name}.csv", table.csv())
    write_atomically(unfinished / "report.md", markdown(results, found, tables))
    write_atomically(unfinished / PAGE, page(results, found, tables))
    _replace(target, unfinished)
    for item in results.skipped:
        say(f"left out: {item.run} {item.why}")
    row = {
        "report": str(target / PAGE),
        "figures": len(figures),
        "figures_missing": len(found) - len(figures),
        "masks": len(results.tickets),
        "fine_tunings": len(results.fine_tunings),
        "left_out": len(results.skipped),
    }
    return {"results": [row]}


def _is_report(target: Path) -> bool:
    """Whether a folder holds a report, or one that was interrupted."""
    return (target / UNFINISHED).is_dir() or GENERATOR in _text(target / PAGE)[:4000]


def _replace(target: Path, unfinished: Path) -> None:
    """Move the files of a new report into its folder, the page last, and remove those that only the one before had."""
    with telling(target / PAGE):
        files = sorted(unfinished.iterdir(), key=lambda file: file.name == PAGE)
        former = files_beside(_text(target / PAGE))
        for file in files:
            file.replace(target / file.name)
        for name in former - {file.name for file in files}:
            (target / name).unlink(missing_ok=True)
        unfinished.rmdir()
        sync_folder(target)


def _text(page_file: Path) -> str:
    try:
        return page_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
