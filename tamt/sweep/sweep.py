"""`tamt sweep`: run a study file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tamt.finetuning.loop import MODEL_FOLDER
from tamt.options.base import command
from tamt.options.sweep import SweepOptions
from tamt.runtime.console import console, say
from tamt.runtime.errors import UserError
from tamt.runtime.files import lock, write_atomically
from tamt.sweep.engine import Engine, Here, OnRay
from tamt.sweep.forecast import Forecast, duration
from tamt.sweep.inputs import check_inputs
from tamt.sweep.plan import Kind, Run, StudyPlan, make_plan
from tamt.sweep.runs import RunStatus, check_options, former_output, move_aside, status_of
from tamt.sweep.study import Study, load_study
from tamt.sweep.table import TABLE, other_rows, summary, table, write_table
from tamt.sweep.worker_processes import WorkerProcesses
from tamt.training.precision import VARIABLE, choose_precision
from tamt.training.run_folder import AUTO, CONFIG

LOCK = ".sweep.lock"


@command(SweepOptions)
def sweep(options: SweepOptions) -> dict:
    """Run `tamt sweep`."""
    study = load_study(options.study, options.output, options.data_dir)
    plan = make_plan(study)
    check_options(study.file, plan.runs)
    folder = study.output
    _check_output(study)
    if options.dry_run:
        return {"results": _show(study, plan, options.redo)}
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        statuses = _statuses(folder, plan)
        _refuse_others(plan, statuses, options.redo)
        rejected = _rejected(plan, statuses)
        check_inputs(study.file, _left(plan, statuses, rejected))
        for run in reversed(plan.runs):  # runs that took a mask before its search, in case this is killed here
            if run.path in rejected:
                say(f"{run.path} {rejected[run.path]}; moved to {move_aside(folder, run)}, and run again")
        rows = _finished_rows(plan, statuses, rejected)
        _report_precision(plan, rows)
        if study.keep_models:
            _report_dropped(folder, plan, rows)
        others = other_rows(folder / TABLE, plan)

        def write() -> None:
            write_atomically(folder / TABLE, write_table([*table(plan, rows), *others]))

        engine = _engine(options, folder, study.keep_models)
        try:
            failed, not_run = _run_all(plan, rows, engine, write)
        except KeyboardInterrupt as stop:
            stop.args = (f"stopped with {len(rows)} of {len(plan.runs)} runs done; repeat the command to continue",)
            raise
        finally:
            engine.close()
            write()
    for path, error in failed.items():
        say(f"failed: {path}: {error}")
    for path, need in not_run.items():
        say(f"not run: {path}, which needs {need}")
    say(f"{len(rows)} of {len(plan.runs)} runs done; all results are in {folder / TABLE}")
    results = summary(table(plan, rows))
    return {"results": results, "failed": [*failed, *not_run], "output": str(folder)}


def _check_output(study: Study) -> None:
    """Check that the output is no folder of a model or a run, such as a model of the study's own name beside it."""
    folder = study.output
    foreign = [name for name in ("config.json", CONFIG, TABLE) if (folder / name).exists()]
    if foreign and not any((folder / name).exists() for name in (LOCK, *get_args(Kind))):
        raise UserError(
            f"the output {folder} holds a {foreign[0]} and no study; give another --output, or another output in "
            f"{study.file}"
        )


def _report_dropped(folder: Path, plan: StudyPlan, rows: dict[str, list[dict]]) -> None:
    done = [run for run in plan.runs if run.kind == "finetune" and run.path in rows]
    if lacking := [run.path for run in done if not (folder / run.path / MODEL_FOLDER).is_dir()]:
        say(
            f"{len(lacking)} finished fine-tunings kept no model, {lacking[0]} the first; move their folders away "
            "to run them again with keep_models"
        )


def _engine(options: SweepOptions, folder: Path, keep_models: bool) -> Engine:
    cores = options.cores or 1
    if options.engine == "processes":
        return WorkerProcesses(folder, keep_models, cores, options.workers)
    if options.engine == "ray":
        return OnRay(folder, keep_models, cores)
    return Here(folder, keep_models)


def _run_all(
    plan: StudyPlan, rows: dict[str, list[dict]], engine: Engine, write: Callable[[], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """Execute the runs that are not in `rows` yet, add their rows, and `write` the table after each.

    Returns:
        The runs that failed with their errors, and the runs that were not started with the failed run that each needs.
    """
    forecast = Forecast(plan.runs, rows)
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
            say(f"run {begun} of {len(plan.runs)}, {forecast.describe(engine.workers)}: {run.path}")
            running.add(run.path)
            engine.start(run)
        with _quiet_unless_watched():
            attempt = engine.finished()
        run = attempt.run
        running.remove(run.path)
        if attempt.error is None:
            rows[run.path] = attempt.rows
            forecast.done(run, attempt.seconds)
            write()
            continue
        say(f"failed: {run.path}: {attempt.error}")
        failed[run.path] = attempt.error
        without = [other for other in waiting if other.needs == run.path]
        not_run |= {other.path: run.path for other in without}
        begun += len(without)
        for dropped in (run, *without):
            forecast.drop(dropped)
        waiting = [other for other in waiting if other not in without]
    return failed, not_run


def _statuses(folder: Path, plan: StudyPlan) -> dict[str, RunStatus]:
    """The status of each run. A finished search without its masks is damaged only if a run that is left needs them."""
    former = former_output(folder, plan.runs)
    statuses = {run.path: status_of(folder, run, former) for run in plan.runs}
    needed = {run.needs for run in plan.runs if statuses[run.path].state != "done"}
    for path, status in statuses.items():
        if status.state == "done without its masks":
            statuses[path] = replace(status, state="damaged" if path in needed else "done")
    return statuses


def _refuse_others(plan: StudyPlan, statuses: dict[str, RunStatus], redo: bool) -> None:
    others = [run for run in plan.runs if statuses[run.path].state == "other"]
    if others and not redo:
        first = others[0]
        more = f", and {len(others) - 1} others do not fit either" if len(others) > 1 else ""
        raise UserError(
            f"{first.path} {statuses[first.path].why}{more}; continue with the same study and version, give another "
            "--output, or use --redo to move such runs aside and run them again"
        )


def _rejected(plan: StudyPlan, statuses: dict[str, RunStatus]) -> dict[str, str]:
    """The runs that must be moved aside, with the reason.

    These are damaged runs, runs with other settings, and runs with a mask whose search is not finished: the search may
    find another mask when it is run again.
    """
    rejected = {
        run.path: statuses[run.path].why for run in plan.runs if statuses[run.path].state in {"damaged", "other"}
    }
    for run in plan.runs:
        lost = run.needs is not None and (run.needs in rejected or statuses[run.needs].state != "done")
        if lost and run.path not in rejected and statuses[run.path].state != "new":
            rejected[run.path] = f"was made from a mask of {run.needs}, which has to be searched again"
    return rejected


def _left(plan: StudyPlan, statuses: dict[str, RunStatus], rejected: dict[str, str]) -> list[Run]:
    """The runs that are to start; one that is done may have lost what it read."""
    return [run for run in plan.runs if run.path in rejected or statuses[run.path].state != "done"]


def _finished_rows(plan: StudyPlan, statuses: dict[str, RunStatus], rejected: dict[str, str]) -> dict[str, list[dict]]:
    """The rows of the runs that are done and kept."""
    done = {run.path: statuses[run.path] for run in plan.runs if run.path not in rejected}
    return {path: status.rows for path, status in done.items() if status.state == "done"}


def _report_precision(plan: StudyPlan, rows: dict[str, list[dict]]) -> None:
    """Log where the runs that are left choose another precision here than the finished ones did."""
    choosing = [run for run in plan.runs if run.kind != "bench" and run.settings.get("precision", AUTO) == AUTO]
    taken = {str(row["precision"]) for run in choosing for row in rows.get(run.path, []) if row.get("precision")}
    here = choose_precision("auto")
    if taken and here not in taken and any(run.path not in rows for run in choosing):
        former = " and ".join(sorted(taken))
        say(
            f"precision {here} on this machine, and {former} in the finished runs: their results stand apart; "
            f"set {VARIABLE}={min(taken)} for runs to average with them"
        )


def _show(study: Study, plan: StudyPlan, redo: bool) -> list[dict]:
    """The runs as rows of a table; their number and the estimated time go to stderr."""
    statuses = _statuses(study.output, plan)
    rejected = _rejected(plan, statuses)
    check_inputs(study.file, _left(plan, statuses, rejected))
    rows = _finished_rows(plan, statuses, rejected)
    _report_precision(plan, rows)
    forecast = Forecast(plan.runs, rows)
    table_rows = []
    for run in plan.runs:
        state: str = statuses[run.path].state
        if run.path in rejected:
            refused = state == "other" and not redo
            state = f"{'refused' if refused else 'to redo'}: {rejected[run.path]}"
        seconds = None if state == "done" else forecast.estimate(run)
        shown = "–" if state == "done" else "unknown" if seconds is None else duration(seconds)
        table_rows.append({"run": run.path, "state": state, "time": shown})
    say(f"{len(plan.runs)} runs in {study.output}, {len(rows)} done; {forecast.describe(1)}")
    return table_rows


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Allow one sweep in the folder at a time."""
    with (folder / LOCK).open("wb") as file:
        lock(file, "sweep", folder)
        yield


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """Show progress bars of runs on a terminal only; in a file they would bury the lines of the study."""
    console.quiet = not console.is_terminal
    try:
        yield
    finally:
        console.quiet = False
