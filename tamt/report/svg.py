"""Panels as inline SVG for the page, which shows the values under the pointer."""

import html
import io
import re
from collections.abc import Iterator
from typing import Any

from tamt.report.drawing import PANEL, draw, pyplot
from tamt.report.figure import Chart, HeatMap, Point, Series
from tamt.report.numbers import number, summary_text
from tamt.report.statistics import Summary
from tamt.report.style import PAGE, SETTINGS


def svg_of(panel: Chart | HeatMap, name: str) -> str:
    """A panel as inline SVG in the colours of the page, with a title for every value.

    Args:
        panel: the panel.
        name: a unique name in the page, from which the ids in the SVG are made.
    """
    plt = pyplot()
    with plt.rc_context({**SETTINGS, "svg.hashsalt": name}):
        drawing, axes = plt.subplots(figsize=PANEL, layout="constrained")
        draw(axes, panel)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        marks = list(_marks(panel, axes, drawing))
        plt.close(drawing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", re.sub(r"<!--.*?-->", "", text))
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), text)  # not the labels of ticks
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    for colour, variable in PAGE.items():
        text = text.replace(colour, variable)
    label = f"<title>{html.escape(panel.title)}</title>"
    text = text.replace('role="img">', f'role="img">{label}', 1)
    return re.sub(r"\n\s*", "\n", text.replace("</svg>", "".join(marks) + "</svg>"))


def _marks(panel: Chart | HeatMap, axes: Any, drawing: Any) -> Iterator[str]:
    """Transparent shapes over the values of a panel, with their titles."""
    drawing.set_dpi(72)  # points, the unit of the SVG
    height = drawing.get_size_inches()[1] * 72
    if isinstance(panel, HeatMap):
        for i, row in enumerate(panel.values):
            for j, value in enumerate(row):
                if value is not None:
                    (x0, y0), (x1, y1) = axes.transData.transform([(j, i), (j + 1, i + 1)])
                    words = f"{panel.rows[i]}, {panel.columns[j]}: {panel.label} {value:.3f}"
                    yield (
                        f'<rect class="v" x="{x0:.1f}" y="{height - y0:.1f}" width="{x1 - x0:.1f}" '
                        f'height="{y0 - y1:.1f}"><title>{html.escape(words)}</title></rect>'
                    )
        return
    if panel.reference:
        (left, y), (right, _) = axes.transAxes.transform([(0, 0), (1, 0)])
        y = height - axes.transData.transform((axes.get_xlim()[0], panel.reference[1].mean))[1]
        words = f"{panel.reference[0]}: {summary_text(panel.reference[1])}"
        yield (
            f'<rect class="v" x="{left:.1f}" y="{y - 4:.1f}" width="{right - left:.1f}" height="8">'
            f"<title>{html.escape(words)}</title></rect>"
        )
    for series in panel.series:
        for point in series.points:
            x, y = axes.transData.transform((point.x, point.y))
            words = words_of(series, point, panel)
            circle = f'<circle class="v" cx="{x:.1f}" cy="{height - y:.1f}" r="6">'
            yield f"{circle}<title>{html.escape(words)}</title></circle>"


def words_of(series: Series, point: Point, chart: Chart) -> str:
    """A point in words: series, mean, spread, runs, position."""
    place = f"{chart.x_label} {number(point.x)}"
    value = summary_text(Summary(point.y, point.spread, point.runs))
    return ", ".join(part for part in (f"{series.label}: {value}", place, point.about) if part)
