"""Figures drawn: one function a panel, for the page's SVG as for PNG and PDF."""

import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tamt.methods import FULL, METHODS, PUBLISHED
from tamt.report.figures import Chart, Figure, HeatMap, Point, Series
from tamt.report.statistics import Summary
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically

INK, MUTED, RULE, PAPER = "#1b1f24", "#5b6570", "#d9dee4", "#fffffe"
COLOURS = {
    **{method.name: method.colours for method in METHODS.values()},
    PUBLISHED: ("#5a3e99", "#a98be6"),
    FULL: (INK, "#e8ebee"),
    "gap": ("#8c2d3a", "#e58a97"),
    "model-0": ("#0072b3", "#56a9e1"),
    "model-1": ("#d55e01", "#ff8a3e"),
    "model-2": ("#008a67", "#2fc39c"),
}
"""A colour for each style, on paper and on a dark page: Okabe and Ito's, told apart by the colour-blind, darkened so
that thin lines on white stand out. Marks differ too."""
MARKS = {
    **{method.name: method.mark for method in METHODS.values()},
    PUBLISHED: "P",
    FULL: "",
    "gap": "",
    "model-1": "s",
    "model-2": "^",
}
PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--surface)"}
PAGE |= {light: f"var(--{style.replace('+', '-')})" for style, (light, _) in COLOURS.items() if style != FULL}
"""What a colour becomes in the page, whose style sheet gives it a value by day and by night."""
RAMP = ((0.96, 0.97, 0.99), (0.62, 0.79, 0.88), (0.19, 0.51, 0.74), (0.03, 0.19, 0.42))
PANEL = (3.7, 2.75)
"""Inches of a panel; 266 pt, so that a phone's 358 px show the page's at more than full size."""
SETTINGS = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def colour_of(style: str) -> str:
    """A style's colour on paper."""
    return COLOURS.get(style, COLOURS[PUBLISHED])[0]


def pyplot() -> Any:
    """matplotlib, without a screen. Raises UserError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UserError("figures need matplotlib; install it with pip install 'tamt[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def styles_of(figure: Figure) -> list[Series]:
    """A series of each style and label of a figure, for the legend; those of the full model last."""
    found: dict[tuple[str, str, bool], Series] = {}
    for panel in figure.panels:
        if isinstance(panel, Chart):
            for series in panel.series:
                found.setdefault((series.label, series.style, series.dashed), series)
            if panel.reference:
                line = Series(panel.reference[0], "full", (), dashed=True)
                found.setdefault((line.label, line.style, True), line)
    return sorted(found.values(), key=lambda series: series.style == "full")


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
    """Ticks where there are points if these are few, else whole numbers."""
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


def line_style(series: Series, many: bool = False) -> dict[str, Any]:
    """matplotlib's options for a series: hollow marks and a dashed line for another start."""
    colour = colour_of(series.style)
    mark = "" if many else MARKS.get(series.style, "o")
    return {
        "color": colour,
        "linestyle": "none" if not series.line else (0, (4, 3)) if series.dashed else "-",
        "linewidth": 1.0 if series.style in ("full", "gap") else 1.5,
        "marker": mark,
        "markersize": 5 if series.line else 5.5,
        "markerfacecolor": PAPER if series.dashed else colour,
        "markeredgecolor": colour if series.dashed else PAPER,
        "markeredgewidth": 1.1 if series.dashed else 0.5,
    }


def draw_heat_map(axes: Any, heat_map: HeatMap) -> None:
    """Draw the cells of a heat map, with their values where there is room."""
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
    axes.set_xticks([j + 0.5 for j in range(columns)], heat_map.columns)
    axes.set_yticks([i + 0.5 for i in range(rows)], heat_map.rows)
    size = min(8, 95 / rows)
    wide = max(map(len, heat_map.columns)) > 3
    axes.tick_params(length=0, labelsize=size)
    axes.tick_params(axis="x", rotation=90 if wide else 0, labelsize=min(8, 95 / columns) if not wide else size)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(heat_map.title, loc="left")
    scale = f"{heat_map.label}, {heat_map.low:.2g} (pale) to {heat_map.high:.2g} (dark)"
    axes.set_xlabel(scale if wide else f"layer; {scale}")


def _cell(x: int, y: int, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=colour, linewidth=0)


def _ramp(share: float) -> tuple[float, float, float]:
    """A colour between the palest and the darkest blue."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    first, second = RAMP[low], RAMP[low + 1]
    red, green, blue = (a + (b - a) * (place - low) for a, b in zip(first, second, strict=True))
    return red, green, blue


def draw(axes: Any, panel: Chart | HeatMap) -> None:
    """Draw a panel of either kind."""
    if isinstance(panel, Chart):
        draw_chart(axes, panel)
    else:
        draw_heat_map(axes, panel)


def write_pictures(figure: Figure, folder: Path, columns: int = 3) -> None:
    """Write a figure as PNG and PDF, all panels in a grid, the legend above."""
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
            handles = [plt.Line2D([], [], **line_style(series)) for series in shown]
            drawing.legend(handles, [s.label for s in shown], loc="outside lower center", ncols=min(5, len(shown)))
        for kind, extra in (("png", {"dpi": 130}), ("pdf", {"metadata": {"CreationDate": None}})):
            buffer = io.BytesIO()
            drawing.savefig(buffer, format=kind, **extra)
            drawing.set_layout_engine("none")  # the first has found it, which takes as long as all the rest
            write_atomically(folder / f"{figure.name}.{kind}", buffer.getvalue())
        plt.close(drawing)


def svg_of(panel: Chart | HeatMap, name: str) -> str:
    """A panel as inline SVG in the colours of the page, with a title under the pointer for every value.

    Args:
        panel: what to draw.
        name: unique in the page, for the ids in the SVG.
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
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    for colour, variable in PAGE.items():
        text = text.replace(colour, variable)
    label = f"<title>{html.escape(panel.title)}</title>"
    text = text.replace('role="img">', f'role="img">{label}', 1)
    return re.sub(r"\n\s*", "\n", text.replace("</svg>", "".join(marks) + "</svg>"))


def _marks(panel: Chart | HeatMap, axes: Any, drawing: Any) -> Iterator[str]:
    """Invisible shapes over the values of a panel, with their words."""
    drawing.set_dpi(72)  # points, as the SVG counts
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
        words = f"{panel.reference[0]}: {said(panel.reference[1])}"
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
    """A point in words: its series, its place, its spread, its runs."""
    place = f"{chart.x_label} {number(point.x)}"
    value = said(Summary(point.y, point.spread, point.runs))
    return ", ".join(part for part in (f"{series.label}: {value}", place, point.about) if part)


def said(summary: Summary) -> str:
    """Mean ± standard deviation to the same digit, and how many runs they are of."""
    digits = 1 if abs(summary.mean) >= 10 else 3
    spread = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread} ({summary.runs} run{'s' * (summary.runs != 1)})"


def number(value: float) -> str:
    """A number for people: four digits, thousands apart."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"


def swatch(series: Series) -> str:
    """A series' line and mark as a small inline SVG, for the legend of the page."""
    colour = PAGE.get(colour_of(series.style), "var(--ink)")
    dash = ' stroke-dasharray="4 3"' if series.dashed else ""
    fill = "var(--surface)" if series.dashed else colour
    line = f'<path d="M1 6H25" stroke="{colour}" stroke-width="2"{dash}/>' if series.line else ""
    shapes = {
        "s": '<rect x="9.5" y="2.5" width="7" height="7"',
        "o": '<circle cx="13" cy="6" r="3.8"',
        "D": '<path d="M13 1.5L17.5 6L13 10.5L8.5 6Z"',
        "^": '<path d="M13 1.5L17.5 9.5H8.5Z"',
        "v": '<path d="M13 10.5L17.5 2.5H8.5Z"',
        "X": '<path d="M9.5 2.5L13 4.5L16.5 2.5L14.7 6L16.5 9.5L13 7.5L9.5 9.5L11.3 6Z"',
        "p": '<path d="M13 1.8L17.2 4.8L15.6 9.7H10.4L8.8 4.8Z"',
        "h": '<path d="M13 1.8L16.8 4V8L13 10.2L9.2 8V4Z"',
        "P": '<path d="M11.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5Z"',
    }
    mark = MARKS.get(series.style, "o")
    shape = f'{shapes[mark]} fill="{fill}" stroke="{colour}"/>' if mark else ""
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{line}{shape}</svg>'


def colour_rules(column: int) -> str:
    """The style sheet's colours of all styles, by day (0) or by night (1)."""
    return "".join(f"--{style.replace('+', '-')}:{pair[column]};" for style, pair in COLOURS.items() if style != "full")


def columns_of(panels: Sequence[Chart | HeatMap]) -> int:
    """How many panels a picture shows side by side: two or four where that fills the lines, else three."""
    return next((n for n in (3, 4, 2) if len(panels) % n == 0), 3)
