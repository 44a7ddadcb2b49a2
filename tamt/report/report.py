"""`tamt report`: from a folder of runs to tables, figures and a page."""

from pathlib import Path

from tamt.options.base import command
from tamt.options.report import ReportOptions
from tamt.report.drawing import columns_of, pyplot, write_pictures
from tamt.report.figure import Figure
from tamt.report.figures import figures_of
from tamt.report.masks import compare_masks, mask_figures
from tamt.report.page import GENERATOR, markdown, page
from tamt.report.paper import paper_table, settings_table
from tamt.report.read import read_results
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
from tamt.runtime.files import write_atomically

PAGE = "report.html"


@command(ReportOptions)
def report(options: ReportOptions) -> dict:
    """Run `tamt report`."""
    target = options.output or options.folder / "report"
    if target.exists() and not target.is_dir():
        raise UserError(f"the output {target} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()) and not _is_report(target / PAGE):
        raise UserError(
            f"the output folder {target} contains other files than a report, and nothing in it is overwritten; "
            "give a new --output"
        )
    pyplot()
    results = read_results(options.folder)
    groups = compare_masks(results)
    found = [*figures_of(results), *mask_figures(results, groups)]
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
    for figure in figures:
        write_pictures(figure, target, columns_of(figure.panels))
        write_atomically(target / f"{figure.name}.csv", figure_table(figure).csv())
    for table in tables:
        write_atomically(target / f"{table.name}.csv", table.csv())
    write_atomically(target / "report.md", markdown(results, found, tables))
    write_atomically(target / PAGE, page(results, found, tables))
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


def _is_report(page_file: Path) -> bool:
    try:
        return GENERATOR in page_file.read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return False
