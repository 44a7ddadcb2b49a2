"""The colours and marks of methods, on paper and in the page."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tamt.methods import FULL, METHODS, PUBLISHED
from tamt.report.figure import Chart, Figure, HeatMap, Series

FRONT = "front"
"""The style of a Pareto front."""
FULL_MARK = "*"
"""The mark of the full model where it is a point; elsewhere it is a line."""
INK, MUTED, RULE, PAPER = "#1b1f24", "#5b6570", "#d9dee4", "#fffffe"
VARIANTS = {
    "variant-1": ("#0072b4", "#56a9e2", "D"),
    "variant-2": ("#b98001", "#f0b93b", "s"),
    "variant-3": ("#5a3e98", "#a98be5", "^"),
    "variant-4": ("#d55e02", "#ff8a3f", "v"),
    "variant-5": ("#008a68", "#2fc39d", "o"),
}
"""Colours and marks for further variants of one method, such as its objectives; no method has the same two."""
COLOURS = {
    **{method.name: method.colours for method in METHODS.values()},
    PUBLISHED: ("#5a3e99", "#a98be6"),
    FULL: (INK, "#e8ebee"),
    "gap": ("#8c2d3a", "#e58a97"),
    FRONT: ("#7b828b", "#a3abb5"),
    "model-0": ("#0072b3", "#56a9e1"),
    "model-1": ("#d55e01", "#ff8a3e"),
    "model-2": ("#008a67", "#2fc39c"),
    **{name: (light, dark) for name, (light, dark, _) in VARIANTS.items()},
}
"""The colours of each style on a light and on a dark page. They are those of Okabe and Ito, which the colour-blind can
distinguish, but darker, so that thin lines are visible on white. The marks differ too."""
MARKS = {
    **{method.name: method.mark for method in METHODS.values()},
    PUBLISHED: "P",
    FULL: "",
    "gap": "",
    FRONT: "",
    "model-1": "s",
    "model-2": "^",
    **{name: mark for name, (_, _, mark) in VARIANTS.items()},
}
PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--surface)"}
PAGE |= {light: f"var(--{style.replace('+', '-')})" for style, (light, _) in COLOURS.items() if style != FULL}
"""The CSS variable of each colour; the style sheet of the page sets it for light and dark."""
SETTINGS = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name may hold $
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
    """The colour of a style on a light page."""
    return COLOURS.get(style, COLOURS[PUBLISHED])[0]


def styles_of(figure: Figure) -> list[Series]:
    """One series for each style and label of a figure, for the legend; the full model is last."""
    found: dict[tuple[str, str, bool], Series] = {}
    for panel in figure.panels:
        if isinstance(panel, Chart):
            for series in panel.series:
                found.setdefault((series.label, series.style, series.dashed), series)
            if panel.reference:
                line = Series(panel.reference[0], "full", (), dashed=True)
                found.setdefault((line.label, line.style, True), line)
    return sorted(found.values(), key=lambda series: series.style == "full")


def told_apart(figures: Sequence[Figure]) -> list[Figure]:
    """The figures, with a style for each variant where several of one method are drawn in the same way."""
    alike: dict[tuple[str, bool], set[str]] = {}
    for figure in figures:
        for series in _all_series(figure):
            if series.variant:
                alike.setdefault((series.style, series.dashed), set()).add(series.variant)
    further = list(VARIANTS)
    styles = {
        (*key, variant): further[number % len(further)]
        for key, variants in alike.items()
        for number, variant in enumerate(sorted(variants)[1:])
    }

    def told(panel: Chart | HeatMap) -> Chart | HeatMap:
        if isinstance(panel, HeatMap):
            return panel
        return replace(panel, series=tuple(replace(s, style=styles.get(_kind(s), s.style)) for s in panel.series))

    return [replace(figure, panels=tuple(map(told, figure.panels))) for figure in figures]


def _all_series(figure: Figure) -> Iterator[Series]:
    return (series for panel in figure.panels if isinstance(panel, Chart) for series in panel.series)


def _kind(series: Series) -> tuple[str, bool, str]:
    return (series.style, series.dashed, series.variant)


def mark_of(series: Series) -> str:
    """matplotlib's mark of a series."""
    return FULL_MARK if series.style == FULL and not series.line else MARKS.get(series.style, "o")


def line_style(series: Series, many: bool = False) -> dict[str, Any]:
    """matplotlib's options for a series. A dashed series has hollow marks."""
    colour = colour_of(series.style)
    mark = "" if many else mark_of(series)
    return {
        "color": colour,
        "linestyle": "none" if not series.line else (0, (4, 3)) if series.dashed else "-",
        "linewidth": 1.0 if series.style in (FULL, FRONT, "gap") else 1.5,
        "marker": mark,
        "markersize": 9 if mark == FULL_MARK else 5 if series.line else 5.5,
        "markerfacecolor": PAPER if series.dashed else colour,
        "markeredgecolor": colour if series.dashed else PAPER,
        "markeredgewidth": 1.1 if series.dashed else 0.5,
    }


def swatch(series: Series) -> str:
    """The line and the mark of a series as a small inline SVG for the legend of the page."""
    colour = PAGE.get(colour_of(series.style), "var(--ink)")
    dash = ' stroke-dasharray="4 3"' if series.dashed else ""
    fill = "var(--surface)" if series.dashed else colour
    line = f'<path d="M1 6H25" stroke="{colour}" stroke-width="2"{dash}/>' if series.line else ""
    shapes = {
        "s": '<rect x="9.5" y="2.5" width="7" height="7"',
        "o": '<circle cx="13" cy="6" r="3.8"',
        "D": '<path d="M13 1.5L17.5 6L13 10.5L8.5 6Z"',
        "d": '<path d="M13 1.5L16 6L13 10.5L10 6Z"',
        "^": '<path d="M13 1.5L17.5 9.5H8.5Z"',
        "v": '<path d="M13 10.5L17.5 2.5H8.5Z"',
        "X": '<path d="M9.5 2.5L13 4.5L16.5 2.5L14.7 6L16.5 9.5L13 7.5L9.5 9.5L11.3 6Z"',
        "p": '<path d="M13 1.8L17.2 4.8L15.6 9.7H10.4L8.8 4.8Z"',
        "h": '<path d="M13 1.8L16.8 4V8L13 10.2L9.2 8V4Z"',
        FULL_MARK: '<path d="M13 1L14.3 4.6H18L15 6.9L16.2 10.6L13 8.3L9.8 10.6L11 6.9L8 4.6H11.7Z"',
        "P": '<path d="M11.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5Z"',
    }
    mark = mark_of(series)
    shape = f'{shapes[mark]} fill="{fill}" stroke="{colour}"/>' if mark else ""
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{line}{shape}</svg>'


def colour_rules(column: int) -> str:
    """CSS variables with the colours of all styles for a light (0) or dark (1) page."""
    return "".join(f"--{style.replace('+', '-')}:{pair[column]};" for style, pair in COLOURS.items() if style != "full")
