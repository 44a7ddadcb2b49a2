"""``python -m benchmarks index``: the page that lists the measured results, a folder for each device."""

import argparse
import re
from pathlib import Path

from benchmarks import machine, report

RESULTS = machine.ROOT / "benchmarks" / "results"
PAGE = "README.md"
INTRODUCTION = """# Measured results

One folder for each device, as the benchmarks wrote it: a CSV file with every row, the tables as Markdown, a picture.
Ratios are those of one run. A target that was missed says so in its table. git's history has older results.
`python -m benchmarks index` writes this page.
"""
HEADING = ("results", "device", "versions", "commit", "date", "targets met")


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command: none."""


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    (RESULTS / PAGE).write_text(page(RESULTS), encoding="utf-8")
    print(f"index: {RESULTS / PAGE}")


def page(folder: Path) -> str:
    """The page for a folder of results: a line for each table, with the heading that the benchmark gave it."""
    rows = [_row(path, folder) for path in sorted(folder.glob("*/**/*.md"))]
    return f"{INTRODUCTION}\n{report.table([HEADING, *filter(None, rows)])}\n"


def _row(path: Path, folder: Path) -> tuple[str, ...] | None:
    """The line of one table; None for a page that no benchmark wrote."""
    text = path.read_text(encoding="utf-8")
    heading = text.partition("\n")[0]
    described = dict(re.findall(r"(device|cpu|threads|torch|triton|commit|date) ([^,]+)", heading))
    if "commit" not in described:
        return None
    name = path.relative_to(folder).as_posix()
    device = described["device"]
    if device == "cpu":
        device = f"{described['cpu']}, {report.counted(described['threads'], 'thread')}"
    versions = f"torch {described['torch']}, Triton {described['triton']}"
    met, missed = (len(re.findall(rf"\| {word} +\|$", text, re.MULTILINE)) for word in ("yes", "no"))
    targets = f"{met} of {met + missed}" if met + missed else "–"
    return f"[{name}]({name})", device, versions, described["commit"], described["date"], targets
