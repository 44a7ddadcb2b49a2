"""`tamt sweep`: from a study file to the folders of all its runs."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tamt.options.base import command
from tamt.options.sweep import SweepOptions
from tamt.runtime.console import console, say
from tamt.runtime.errors import UserError
from tamt.runtime.files import lock, write_atomically
from tamt.runtime.termination import SIGTERM, Terminated
from tamt.sweep.clock import Clock, duration
from tamt.sweep.engine import Engine, Here, OnRay
from tamt.sweep.plan import Plan, Run, make_plan
from tamt.sweep.runs import Found, look, move_aside
from tamt.sweep.study import load_study
from tamt.sweep.table import TABLE, summary, table, write_table

LOCK = ".sweep.lock"


@command(SweepOptions)
def sweep(options: SweepOptions) -> dict:
    """Run `tamt sweep`."""
    loaded = load_study(options.study, options.output, options.data_dir)
    plan = make_plan(loaded)
    folder = loaded.output
    if options.dry_run:
        return {"results": _show(folder, plan, options.redo)}
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = _found(folder, plan)
        _refuse_others(plan, found, options.redo)
        aside = _to_move(plan, found)
        for run in reversed(plan.runs):  # what was made from a mask before the mask, should this be killed here
            if run.path in aside:
                say(f"{run.path} {aside[run.path]}; it is now {move_aside(folder, run)}, and is done again")
        done = {run.path: found[run.path].rows for run in plan.runs if found[run.path].state == "done"}
        rows = {path: results for path, results in done.items() if path not in aside}
        chosen: Engine = Here(folder, loaded.keep_models)
        if options.engine == "ray":
            chosen = OnRay(folder, loaded.keep_models, options.cores)
        try:
            with _saved_on_interrupt():
                failed, not_run = _do_all(folder, plan, rows, chosen)
        except KeyboardInterrupt as stop:
            stop.args = (
                f"stopped with {len(rows)} of {len(plan.runs)} runs done; the same command goes on from there",
            )
            raise
        finally:
            chosen.close()
            write_atomically(folder / TABLE, write_table(table(plan, rows)))
    for path, error in failed.items():
        say(f"failed: {path}: {error}")
    for path, need in not_run.items():
        say(f"not run: {path}, which needs {need}")
    say(f"{len(rows)} of {len(plan.runs)} runs done; every result is in {folder / TABLE}")
    results = summary(table(plan, rows))
    return {"results": results, "failed": [*failed, *not_run], "output": str(folder)}


def _do_all(
    folder: Path, plan: Plan, rows: dict[str, list[dict]], engine: Engine
) -> tuple[dict[str, str], dict[str, str]]:
    """Do what is not in `rows` yet, and put it there.

    Returns:
        The runs that failed with their errors, and those that were not run with the failed one that each needs.
    """
    clock = Clock(plan.runs, rows)
    waiting = [run for run in plan.runs if run.path not in rows]
    running: set[str] = set()
    failed: dict[str, str] = {}
    not_run: dict[str, str] = {}
    begun = len(rows)

    def next_ready() -> Run | None:
        for run in waiting:
            if run.needs is None or run.needs in rows:
                waiting.remove(run)
                return run
        return None

    while waiting or running:
        while len(running) < engine.workers and (run := next_ready()):
            begun += 1
            say(f"run {begun} of {len(plan.runs)}, {clock.told(engine.workers)}: {run.path}")
            running.add(run.path)
            engine.start(run)
        with _quiet_unless_watched():
            outcome = engine.finished()
        run = outcome.run
        running.remove(run.path)
        if outcome.error is None:
            rows[run.path] = outcome.rows
            clock.done(run, outcome.seconds)
            write_atomically(folder / TABLE, write_table(table(plan, rows)))
            continue
        say(f"failed: {run.path}: {outcome.error}")
        failed[run.path] = outcome.error
        without = [other for other in waiting if other.needs == run.path]
        not_run |= {other.path: run.path for other in without}
        begun += len(without)
        for gone in (run, *without):
            clock.gone(gone)
        waiting = [other for other in waiting if other not in without]
    return failed, not_run


def _found(folder: Path, plan: Plan) -> dict[str, Found]:
    """What there is of each run. A finished search lacks its masks only where a run that is left needs them."""
    found = {run.path: look(folder, run) for run in plan.runs}
    needed = {run.needs for run in plan.runs if found[run.path].state != "done"}
    for path, there in found.items():
        if there.state == "done without its masks":
            found[path] = replace(there, state="damaged" if path in needed else "done")
    return found


def _refuse_others(plan: Plan, found: dict[str, Found], redo: bool) -> None:
    others = [run for run in plan.runs if found[run.path].state == "other"]
    if others and not redo:
        first = others[0]
        more = f", and {len(others) - 1} others do not fit either" if len(others) > 1 else ""
        raise UserError(
            f"{first.path} {found[first.path].why}{more}; go on with what did it, give another "
            "--output, or --redo moves such runs aside and does them again"
        )


def _to_move(plan: Plan, found: dict[str, Found]) -> dict[str, str]:
    """The runs that have to go out of the way, with the reason.

    Those that are damaged or other than asked for, and what was made from a mask whose search is not there finished:
    the search done again may give another mask.
    """
    aside = {run.path: found[run.path].why for run in plan.runs if found[run.path].state in {"damaged", "other"}}
    for run in plan.runs:
        lost = run.needs is not None and (run.needs in aside or found[run.needs].state != "done")
        if lost and run.path not in aside and found[run.path].state != "new":
            aside[run.path] = f"was made from a mask of {run.needs}, which has to be searched again"
    return aside


def _show(folder: Path, plan: Plan, redo: bool) -> list[dict]:
    """The runs as rows of a table, and on stderr how many there are and how long they may take."""
    found = _found(folder, plan)
    aside = _to_move(plan, found)
    done = {run.path: found[run.path].rows for run in plan.runs if found[run.path].state == "done"}
    rows = {path: results for path, results in done.items() if path not in aside}
    clock = Clock(plan.runs, rows)
    table_rows = []
    for run in plan.runs:
        state: str = found[run.path].state
        if run.path in aside:
            refused = state == "other" and not redo
            state = f"{'refused' if refused else 'to redo'}: {aside[run.path]}"
        seconds = None if state == "done" else clock.estimate(run)
        shown = "–" if state == "done" else "unknown" if seconds is None else duration(seconds)
        table_rows.append({"run": run.path, "state": state, "time": shown})
    say(f"{len(plan.runs)} runs in {folder}, {len(rows)} done; {clock.told(1)}")
    return table_rows


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second sweep out of the folder."""
    with (folder / LOCK).open("wb") as file:
        lock(file, "sweep", folder)
        yield


@contextmanager
def _saved_on_interrupt() -> Iterator[None]:
    """Answer Ctrl-C as SIGTERM is: the training at work ends after its step and saves. A second one ends at once."""
    answer = signal.getsignal(SIGTERM) if SIGTERM else None
    if threading.current_thread() is not threading.main_thread() or not callable(answer):
        yield
        return
    interrupted = False

    def handle(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        answer(number, frame)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except Terminated:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """Let runs show their bars on a terminal; into a file their lines would bury those of the study."""
    console.quiet = not console.is_terminal
    try:
        yield
    finally:
        console.quiet = False
