"""What commands print: progress on stderr, and results on stdout, where `--json` puts one object.

When several processes share a run, only the first one prints.
"""

import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tamt.runtime import processes

UNBROKEN = 10_000
"""Width of a table in a file or a pipe, so that each row is one line."""

QUIET = 60.0
"""Seconds after which a training that prints to a file tells again how far it is."""

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line to stderr."""
    if processes.first():
        console.print(text, markup=False, soft_wrap=True)


class Progress:
    """A progress bar with the latest figures on a terminal; elsewhere a line at every tenth of the steps, and at least
    one in a minute."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total = what, total
        self._start, self._first = time.monotonic(), done
        self._told, self._told_at = done, self._start
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and processes.first()),
        )
        self._task = self._bar.add_task(what, total=total, completed=done, figures="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def update(self, step: int, figures: str) -> None:
        """Show that `step` steps are done."""
        self._bar.update(self._task, completed=step, figures=figures)
        now, tenth = time.monotonic(), max(1, self._total // 10)
        passed = step // tenth > self._told // tenth or step == self._total
        if not console.is_terminal and (passed or now - self._told_at >= QUIET):
            self._told, self._told_at = step, now
            left = (now - self._start) / max(1, step - self._first) * (self._total - step)
            say(f"{self._what} {step}/{self._total} {figures} {left:.0f} s left")


def show(results: list[dict]) -> None:
    """Print rows of results to stdout: equal values line by line, the others as a table, and one row's matrices.

    What no row has is left out, unless it is a score or a loss: that one is undefined.
    """
    if not results:  # no run of a study succeeded
        return
    output = Console(highlight=False)
    if not output.is_terminal:
        output.width = UNBROKEN
    columns = [key for key, value in _merged(results).items() if not isinstance(value, dict | list)]
    shared = [key for key in columns if all(row.get(key) == results[0].get(key) for row in results)]
    for key in shared:
        if results[0][key] is not None or key.endswith(("score", "loss")):
            output.print(f"{key:<14} {_cell(results[0][key])}", markup=False, soft_wrap=True)
    if differing := [key for key in columns if key not in shared]:
        _print_table(output, [{key: row.get(key) for key in differing} for row in results])
    if len(results) == 1 and (matrices := results[0].get("matrices")):
        _print_table(output, [{"matrix": name, **values} for name, values in matrices.items()])


def _merged(rows: list[dict]) -> dict:
    """All keys of some rows, in the order in which they come, each with a value that it has."""
    merged: dict = {}
    for row in rows:
        merged |= {key: value for key, value in row.items() if merged.get(key) is None}
    return merged


def _print_table(output: Console, rows: list[dict]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in rows[0]:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))  # as they are: [1] is no mark-up
    output.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return " / ".join(_cell(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
