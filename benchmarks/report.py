"""The results of a run: a CSV file that grows as they come, a table, a picture."""

import csv
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from tamt.runtime.errors import UserError

Row = dict[str, str | int | float | None]

TICKS = (0.1, 1.0, 10.0, 100.0, 1000.0)


class Csv:
    """A CSV file whose every row is on the disk as soon as it is written, should the run be cut short."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        self._writer: csv.DictWriter | None = None

    @classmethod
    def in_folder(cls, folder: Path, name: str) -> "Csv":
        """A new file in a folder, which is made. Raises UserError if it cannot be."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder / name)
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written to: {error.strerror}") from error

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


def figure(value: float) -> str:
    """A measured value with three or four digits that mean something, never as a power of ten."""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def counted(number: int | str, what: str) -> str:
    """`1 thread`, `2 threads`, `1 and 2 threads`."""
    return f"{number} {what}" + "s" * (str(number) != "1")


def bars(
    path: Path, title: str, panels: dict[str, dict[str, float]], ours: str, ticks: tuple[float, ...] = TICKS
) -> str | None:
    """Draw each comparison's times in milliseconds, as multiples of ours; say why where that cannot be."""
    try:
        import matplotlib as mpl
    except ImportError:
        return f"{path.name} is left out, as matplotlib is not installed"
    mpl.use("agg")
    from matplotlib import pyplot as plt

    highest = max(max(times.values()) / times[ours] for times in panels.values())
    while highest > ticks[-1]:
        ticks = (*ticks, ticks[-1] * 10)
    columns = min(3, len(panels))
    lines = (len(panels) + columns - 1) // columns
    canvas, axes = plt.subplots(
        lines, columns, figsize=(5 * columns, 1.8 * lines + 0.8), squeeze=False, layout="constrained"
    )
    for axis, (name, times) in zip(axes.flat, panels.items(), strict=False):
        ratios = [time / times[ours] for time in times.values()]
        colours = ["tab:orange" if ratio < 1 else "tab:blue" for ratio in ratios]
        axis.barh(list(times), [ratio - 1 for ratio in ratios], left=1, color=colours)
        axis.axvline(1, color="black", linewidth=0.8)
        for line, (ratio, time) in enumerate(zip(ratios, times.values(), strict=True)):
            axis.text(max(ratio, 1), line, f" {figure(time)} ms", va="center", fontsize=7)
        axis.set_xscale("log")
        axis.set_xlim(ticks[0] / 2, ticks[-1] * 4)  # room for the longest bar's figure
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks[:-1]] + [f"{ticks[-1]:g} ×"])
        axis.minorticks_off()
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    canvas.suptitle(textwrap.fill(title, 50 * columns), fontsize=11)
    canvas.supxlabel(f"time over that of {ours} (orange: faster than it); median", fontsize=9)
    canvas.savefig(path, dpi=90)
    plt.close(canvas)
    return None
