"""Panels and pictures drawn by matplotlib."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tamt.report.figure import Chart, Figure, HeatMap, Series
from tamt.report.style import INK, RULE, SETTINGS, colour_of, line_style, styles_of
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically

RAMP = ((0.96, 0.97, 0.99), (0.62, 0.79, 0.88), (0.19, 0.51, 0.74), (0.03, 0.19, 0.42))
PANEL = (3.7, 2.75)
"""Width and height of a panel in inches; its 266 pt fit the width of a phone."""


def pyplot(extra: str = "plots") -> Any:
    """matplotlib without a display. Raises UserError if it is not installed; `extra` of tamt brings it."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UserError(f"figures need matplotlib; install it with pip install 'tamt[{extra}]'") from error
    if mpl.get_backend(auto_select=False) is None:  # a notebook keeps its own
        mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def draw_chart(axes: Any, chart: Chart) -> None:
    """Draw the lines, marks and bands of a chart."""
    for series in chart.series:
        colour = colour_of(series.style)
        x, y = [p.x for p in series.points], [p.y for p in series.points]
        if series.line:
            low = [p.y - (p.spread or 0) for p in series.points]
            high = [p.y + (p.spread or 0) for p in series.points]
            if len(x) > 1 and low != high:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            elif low != high:
                axes.errorbar(x, y, [p.spread or 0 for p in series.points], color=colour, linewidth=1)
        axes.plot(x, y, **line_style(series, many=len(x) > 15))
    if chart.reference:
        axes.axhline(chart.reference[1].mean, color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(chart.title, loc="left")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.06, y=0.1)
    _whole_ticks(axes, chart)


def _whole_ticks(axes: Any, chart: Chart) -> None:
    """Ticks at the points if there are few of them, else at round numbers."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    values = sorted({point.x for series in chart.series for point in series.points})
    if chart.log_x:
        axes.set_xticks(values)
        axes.xaxis.set_minor_formatter(NullFormatter())
        if len(values) > 6 or (values and max(values) / min(values) < 2 ** len(values) / 2):
            axes.tick_params(axis="x", rotation=30)
    elif chart.x_label.startswith("sparsity") and len(values) <= 10:
        axes.set_xticks(values)
    elif chart.x_label in ("layer", "search steps"):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def draw_heat_map(axes: Any, heat_map: HeatMap) -> None:
    """Draw the cells of a heat map, with their values if they fit."""
    rows, columns = len(heat_map.rows), len(heat_map.columns)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    small = max(rows, columns)
    for i, row in enumerate(heat_map.values):
        for j, value in enumerate(row):
            if value is None:
                continue
            share = (value - heat_map.low) / ((heat_map.high - heat_map.low) or 1)
            axes.add_patch(_cell(j, i, _ramp(share)))
            if small <= 16:
                ink = "#fffffd" if share > 0.5 else "#10151b"
                text = f"{value:.2f}".replace("0.", ".") if value < 1 else "1"
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=min(7.5, 62 / small), color=ink)
    # Rows and columns of the same masks: long names stand once, with numbers that the columns repeat.
    numbered = heat_map.rows == heat_map.columns
    names = [f"{number}: {row}" for number, row in enumerate(heat_map.rows, 1)] if numbered else heat_map.rows
    axes.set_xticks([j + 0.5 for j in range(columns)], range(1, columns + 1) if numbered else heat_map.columns)
    axes.set_yticks([i + 0.5 for i in range(rows)], names)
    axes.tick_params(length=0, axis="x", labelsize=min(8, 150 / columns))
    axes.tick_params(length=0, axis="y", labelsize=min(8, 95 / rows))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(heat_map.title, loc="left")
    scale = f"{heat_map.label}, {heat_map.low:.2g} (pale) to {heat_map.high:.2g} (dark)"
    axes.set_xlabel(scale if numbered else f"layer; {scale}", horizontalalignment="right", x=1.0)


def _cell(x: int, y: int, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=colour, linewidth=0)


def _ramp(share: float) -> tuple[float, float, float]:
    """A blue between pale (0) and dark (1)."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    first, second = RAMP[low], RAMP[low + 1]
    red, green, blue = (a + (b - a) * (place - low) for a, b in zip(first, second, strict=True))
    return red, green, blue


def draw(axes: Any, panel: Chart | HeatMap) -> None:
    """Draw a panel."""
    if isinstance(panel, Chart):
        draw_chart(axes, panel)
    else:
        draw_heat_map(axes, panel)


def write_pictures(figure: Figure, folder: Path, columns: int = 3) -> None:
    """Write a figure as PNG and PDF: all panels in a grid, and the legend below."""
    plt = pyplot()
    with plt.rc_context(SETTINGS):
        columns = min(columns, len(figure.panels))
        lines = -(-len(figure.panels) // columns)
        size = (max(columns * PANEL[0], 5), lines * PANEL[1] + 0.75)
        drawing, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
        for cell, panel in zip(axes.flat, figure.panels, strict=False):
            draw(cell, panel)
        for cell in axes.flat[len(figure.panels) :]:
            cell.set_axis_off()
        drawing.suptitle(figure.title, fontsize=11, color=INK)
        if shown := styles_of(figure):
            put_legend(drawing, shown)
        for kind, extra in (("png", {"dpi": 130}), ("pdf", {"metadata": {"CreationDate": None}})):
            buffer = io.BytesIO()
            drawing.savefig(buffer, format=kind, **extra)
            drawing.set_layout_engine("none")  # the layout is known from the first format, and takes half the time
            write_atomically(folder / f"{figure.name}.{kind}", buffer.getvalue())
        plt.close(drawing)


def put_legend(drawing: Any, series: Sequence[Series]) -> None:
    """Put the legend below the panels, in as many columns as fit into the picture, five at most."""
    handles = [pyplot().Line2D([], [], **line_style(each)) for each in series]
    for columns in range(min(5, len(series)), 0, -1):
        legend = drawing.legend(handles, [s.label for s in series], loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= drawing.bbox.width:
            return
        legend.remove()


def columns_of(panels: Sequence[Chart | HeatMap]) -> int:
    """The number of panels per row of a picture: three, or four or two if that fills all rows."""
    return next((n for n in (3, 4, 2) if len(panels) % n == 0), 3)
