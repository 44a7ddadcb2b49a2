"""The finished runs below a folder, as their files describe them."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamt.report.results import Results
from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import read_json, read_yaml
from tamt.sweep.plan import ASIDE
from tamt.training.run_folder import CONFIG, METRICS, RESULTS, RESUMED, version_of


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. `model` and `task` are short labels for readers; each stands for one thing."""

    name: str
    path: Path
    version: str | None
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    model: str = ""
    task: str = ""
    variant: str | None = None


@dataclass
class SearchLog:
    """The lines of metrics.jsonl without those of the head warm-up, by step; lines of the same step are merged."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    resumed: bool = False
    warmed_up: bool = False

    def seconds_at(self, step: int) -> float | None:
        """The seconds logged at the step, or at the first one after it; None if the search was resumed."""
        later = sorted(number for number, line in self.lines.items() if number >= step and "seconds" in line)
        return None if self.resumed or not later else float(self.lines[later[0]]["seconds"])

    def seconds_per_step(self) -> float | None:
        """Seconds per step between the first and the last logged step; None if it was resumed or logged too little.

        The first step counts from the start of the run, unless a head was warmed up before it.
        """
        times = {step: float(line["seconds"]) for step, line in self.lines.items() if "seconds" in line}
        if not self.warmed_up:
            times[0] = 0.0
        if self.resumed or len(times) < 2:
            return None
        first, last = min(times), max(times)
        return (times[last] - times[first]) / (last - first)


def finished_runs(results: Results) -> Iterator[FinishedRun]:
    """The finished runs below the folder, in the order of their names; those that cannot be read are skipped."""
    for name, path in sorted(_run_folders(results.folder).items(), key=lambda item: Path(item[0])):
        if ASIDE in Path(name).parts:
            results.skip(name, "was set aside by tamt sweep")
            continue
        if not (path / CONFIG).is_file():
            continue  # a summary of several runs, which are read themselves
        try:
            config = read_yaml(path / CONFIG)
            if not all(isinstance(config.get(kind, ""), str) for kind in ("method", "task")):
                raise UserError("neither a method nor a task")
        except UserError:
            results.skip(name, f"has a damaged {CONFIG}")
            continue
        if not (path / RESULTS).is_file():
            results.skip(name, f"is not finished: it has no {RESULTS}")
            continue
        try:
            rows = read_json(path / RESULTS)["results"]
            if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
                raise ValueError
        except (UserError, ValueError, KeyError, TypeError):
            results.skip(name, f"has a damaged {RESULTS}")
            continue
        yield FinishedRun(name, path, version_of(path), config, rows)


def _run_folders(folder: Path) -> dict[str, Path]:
    """The run folders below a folder by their names in it, each once. Links are followed to folders not yet seen.

    The folder of a link is the one that it leads to, as masks are named by that.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    links = [(".", folder)]
    for name, start in links:  # which grows; folders that are there themselves come before those of links
        for top, inside, files in os.walk(start):
            if (real := os.path.realpath(top)) in seen:
                inside.clear()
                continue
            seen.add(real)
            inside.sort()
            here = os.path.normpath(os.path.join(name, os.path.relpath(top, start)))
            if CONFIG in files or RESULTS in files:
                found[here] = Path(top)
            linked = [entry for entry in inside if os.path.islink(os.path.join(top, entry))]
            links += [(os.path.join(here, entry), Path(top, entry).resolve()) for entry in linked]
    return found


def read_log(results: Results, run: FinishedRun) -> SearchLog:
    """The log of a search; damaged lines are left out, which `results` records."""
    log = SearchLog()
    damaged = 0
    for text in _text(run.path / METRICS).splitlines():
        try:
            line = json.loads(text)
            step, _ = int(line["step"]), float(line.get("seconds", 0))
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
            continue
        log.resumed |= RESUMED in line
        if "head_warmup" in line:
            log.warmed_up = True
        else:
            log.lines.setdefault(step, {}).update(line)
    if damaged:
        results.skip(f"{run.name}/{METRICS}", f"has {damaged} damaged lines, which are left out")
    if log.resumed:
        results.skip(run.name, "was interrupted and resumed, so its search time is unknown; its masks are used")
    return log


def _text(path: Path) -> str:
    """The text of a file, with replacement characters for what is not UTF-8; empty if there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def number_in(row: Mapping[str, Any], key: str) -> float:
    """The number under a key. Raises KeyError or ValueError if there is none."""
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def optional_number(row: Mapping[str, Any], key: str) -> float | None:
    """The number under a key, None if the key is missing or null. Raises ValueError if it is something else."""
    return None if row.get(key) is None else number_in(row, key)
