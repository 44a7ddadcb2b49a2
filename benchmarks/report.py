"""The results of a run: a CSV file that grows as they come, a table, a picture."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

Row = dict[str, str | int | float | None]


class Csv:
    """A CSV file whose every row is on the disk as soon as it is written, should the run be cut short."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        self._writer: csv.DictWriter | None = None

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if self._writer is None:
                self._writer = csv.DictWriter(self._file, list(row))
                self._writer.writeheader()
            self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first of which is the heading, as Markdown that reads well as it is."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def bars(path: Path, title: str, panels: dict[str, dict[str, float]], label: str) -> str | None:
    """Draw a panel of bars for each comparison, on a logarithmic axis; say what is missing where that cannot be."""
    try:
        import matplotlib as mpl
    except ImportError:
        return f"{path.name} is left out, as matplotlib is not installed"
    mpl.use("agg")
    from matplotlib import pyplot as plt

    columns = 3
    lines = (len(panels) + columns - 1) // columns
    figure, axes = plt.subplots(lines, columns, figsize=(15, 1.9 * lines + 0.6), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes.flat, panels.items(), strict=False):
        colours = ["tab:orange" if each == "tamt_kernels" else "tab:blue" for each in values]
        axis.barh(list(values), list(values.values()), color=colours)
        axis.set_xscale("log")
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(label, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return None
