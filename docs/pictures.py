"""The first picture of the README, on a light page and on a dark one: `python docs/pictures.py`.

It shows the first table of scores in docs/reports.md; newer scores there are a newer picture.
"""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from tamt.methods import METHODS

DOCS = Path(__file__).parent
HEADING = "70 % pruned"
"""That of the first column of the table."""
TASKS = {"STS-B": "STS-B, Pearson × 100", "SST-2": "SST-2, accuracy in %", "TREC": "TREC, accuracy in %"}
SHOWN = {
    "TAMT-KD": ("TAMT-KD", "tamt-kd"),
    "Wanda, one-shot": ("Wanda (one-shot)", "wanda"),
    "IMP": ("IMP", "imp"),
    "OMP": ("OMP (magnitude)", "omp"),
    "random": ("random", "rand"),
}
"""The rows of the table in the picture: their names there, and the method whose colour they have."""
SHORTEST = 25
"""A bar of this score or less is too short to hold its figure."""


class Theme(NamedTuple):
    """Colours of a page, and which of a method's two colours shows on it."""

    text: str
    faint: str
    page: str
    colour: int


THEMES = {"light": Theme("#1f2328", "#d1d9e0", "#ffffff", 0), "dark": Theme("#f0f6fc", "#3d444d", "#0d1117", 1)}


def scores(page: str) -> dict[str, dict[str, float]]:
    """The scores in the table under `HEADING` by method and task, and those of the full model."""
    lines = page[page.index(f"| {HEADING} |") :].partition("\n\n")[0].splitlines()
    heading, _, *table = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(heading, row, strict=True)) for row in table]
    return {row[HEADING]: {task: float(row[task]) for task in TASKS if row[task] != "not run"} for row in rows}


def draw(found: dict[str, dict[str, float]], theme: Theme, path: Path) -> None:
    """A bar for each method and task, and a line where the full model is."""
    style: dict[str, Any] = {"font.size": 10.5, "text.color": theme.text, "axes.labelcolor": theme.text}
    with mpl.rc_context(style):
        figure, panels = plt.subplots(
            1, len(TASKS), figsize=(8, 3.1), sharey=True, facecolor=theme.page, layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.08)
        for axes, (task, title) in zip(panels, TASKS.items(), strict=True):
            axes.set_facecolor(theme.page)
            for place, (name, (_, method)) in enumerate(reversed(SHOWN.items())):
                score = found[name].get(task)
                if score is None:
                    axes.text(1, place, "not run", va="center", color=theme.text, alpha=0.7, fontsize=9)
                    continue
                bold = "bold" if method == "tamt-kd" else "normal"
                axes.barh(place, score, height=0.62, color=METHODS[method].colours[theme.colour])
                inside = score > SHORTEST
                side, gap, colour = ("right", -1.5, theme.page) if inside else ("left", 1.5, theme.text)
                axes.text(score + gap, place, f"{score:.1f}", va="center", ha=side, color=colour, fontweight=bold)
            full = found["full model"][task]
            axes.axvline(full, color=theme.text, linestyle=(0, (3, 2)), linewidth=1.2)
            axes.text(full, len(SHOWN) - 0.42, f"full model {full:.1f}", ha="right", va="bottom", fontsize=9.5)
            axes.set_title(title, fontsize=10.5, loc="left", pad=20, fontweight="bold")
            axes.set_xlim(0, 101)
            axes.set_yticks(range(len(SHOWN)), [label for label, _ in reversed(SHOWN.values())])
            axes.tick_params(colors=theme.text, length=0)
            axes.set_xticks([])
            for side, spine in axes.spines.items():
                spine.set_visible(side == "left")
                spine.set_color(theme.faint)
        figure.savefig(path, dpi=160, facecolor=theme.page)
        plt.close(figure)


def main() -> None:
    """Draw the picture for each theme, beside this file."""
    found = scores((DOCS / "reports.md").read_text(encoding="utf-8"))
    for name, theme in THEMES.items():
        draw(found, theme, DOCS / f"scores-{name}.png")


if __name__ == "__main__":
    main()
