"""One run of a study: its status, and its execution."""

import gc
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from tamt.commands.bench import bench
from tamt.commands.evaluate import evaluate
from tamt.finetuning.finetune import finetune
from tamt.finetuning.loop import MODEL_FOLDER
from tamt.options.base import Options
from tamt.options.bench import BenchOptions
from tamt.options.evaluate import EvaluateOptions
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.runtime.untrusted import read_yaml
from tamt.search.train import train
from tamt.sweep.plan import ASIDE, Kind, Run
from tamt.training.run_folder import (
    AUTO,
    CONFIG,
    HARMLESS,
    RESULTS,
    DamagedCheckpointError,
    agrees,
    apart,
    finished_results,
    version_of,
    write_config,
)
from tamt.version import __version__

COMMANDS: dict[Kind, Callable[..., dict]] = {
    "search": train,
    "evaluate": evaluate,
    "finetune": finetune,
    "bench": bench,
}
OPTIONS: dict[Kind, type[Options]] = {
    "search": TrainOptions,
    "evaluate": EvaluateOptions,
    "finetune": FinetuneOptions,
    "bench": BenchOptions,
}
RESUMABLE = {"search", "finetune"}
"""Commands with a run folder of their own; the sweep writes the folders of the others."""
ERRORS = "errors"

State = Literal["done", "done without its masks", "to resume", "new", "damaged", "other"]


@dataclass(frozen=True)
class RunStatus:
    """What a study's folder holds of a run: its state, why it is `damaged` or `other`, and its rows if it is done."""

    state: State
    why: str = ""
    rows: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Attempt:
    """How a run ended: with rows, or with an error in one sentence; and the seconds that it took, loading included."""

    run: Run
    rows: list[dict] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0


def check_options(study: Path, runs: Iterable[Run]) -> None:
    """Raise UserError if a run has settings that its command refuses, before any run starts."""
    for run in runs:
        if refusal := _refusal(run):
            raise UserError(f"{study}: {run.path} cannot run: {refusal}")


def _refusal(run: Run) -> UserError | None:
    try:
        OPTIONS[run.kind](**run.settings)
    except UserError as error:
        return error
    return None


def former_output(output: Path, runs: Iterable[Run]) -> Path:
    """The place of a study's folder when its first run was started; the study may have been moved since."""
    for run in runs:
        with suppress(UserError):
            started = read_yaml(output / run.path / CONFIG)
            if "output" in started:
                return Path(str(started["output"])).parent.parent
    return output


def status_of(output: Path, run: Run, former: Path) -> RunStatus:
    """What the folder of a study holds of a run. Nothing is written.

    A run is `other` than requested if a setting differs, given or by default, or if another version of tamt started it.
    The study's folder, and what is named relative to it, may have been moved. A finished search may have more masks
    than requested.

    Args:
        output: the folder of the study.
        run: what is requested.
        former: where that folder was, for runs that do not say so; see `former_output`.
    """
    folder = output / run.path
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return RunStatus("new")
    try:
        started = read_yaml(folder / CONFIG)
    except UserError:
        return RunStatus("damaged", f"has no readable {CONFIG}")
    finished = (folder / RESULTS).exists()
    if differing := _difference(output, run, started, finished, former):
        return RunStatus("other", f"was started with {differing}")
    if (version := version_of(folder)) != __version__:
        return RunStatus("other", f"was started by tamt {version or 'of an unknown version'}, not {__version__}")
    if not finished:
        return RunStatus("to resume")
    try:
        rows = _with_precision(folder, finished_results(folder, {}) or [])
    except UserError:
        return RunStatus("damaged", f"has an unreadable {RESULTS}")
    if lacking := [mask for mask in run.masks if not _is_whole(folder / mask)]:
        state: State = "damaged" if any((folder / mask).exists() for mask in lacking) else "done without its masks"
        return RunStatus(state, f"has no readable {lacking[0]}", rows)
    return RunStatus("done", rows=rows)


def _with_precision(folder: Path, rows: list[dict]) -> list[dict]:
    """Rows of a finished run with the precision that it took, which `auto` chooses anew on every machine."""
    precision = read_yaml(folder / CONFIG).get("precision")
    return [{"precision": precision, **row} for row in rows]


def _is_whole(mask: Path) -> bool:
    """Whether a mask file has all its bytes; their content is checked when the mask is used."""
    try:
        with safe_open(mask, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _difference(output: Path, run: Run, started: Mapping[str, Any], finished: bool, former: Path) -> str | None:
    """The first setting in which a started run differs from `run`; None if there is none."""
    options = OPTIONS[run.kind]
    left_out = options.NOT_SAVED | {"output"}
    defaults = {field.name: field.default for field in fields(options) if field.name not in left_out}
    if "output" in started:
        former = Path(started["output"]).parent.parent
    elif place := str(started.get("mask")).rpartition("/search/")[0]:  # of an evaluation or a measurement
        former = Path(place)
    before, now = apart(former, output)
    for name, default in defaults.items():
        asked = run.settings.get(name, default)
        asked = str(asked) if isinstance(asked, Path) else asked
        there = started.get(name, default)
        if name in HARMLESS or asked == AUTO:
            continue
        if name == "save_at" and finished and {*(asked or [])} <= {*(there or [])}:
            continue
        if not agrees(asked, there, before, now):
            return f"{name} = {there!r}, not {asked!r}"
    return None


def move_aside(output: Path, run: Run) -> Path:
    """Move the folder of a run to `aside/` in the study's folder; returns its new path."""
    number, target = 1, output / ASIDE / run.path
    while target.exists():
        number += 1
        target = output / ASIDE / f"{run.path}.{number}"
    target.parent.mkdir(parents=True, exist_ok=True)
    (output / run.path).rename(target)
    return target


def attempt(output: Path, run: Run, keep_models: bool) -> Attempt:
    """Execute a run, or continue it. Errors are returned, not raised.

    The traceback of an error that is not a `UserError` is written to `errors/`. The model of a fine-tuning is deleted
    unless `keep_models`: its score is in the results, and a BERT-base takes 440 MB.
    """
    started = time.monotonic()
    complaint = output / ERRORS / f"{run.kind}_{run.name}.txt"
    gc.freeze()  # so that the collection below does not go through all of torch and transformers
    try:
        try:
            rows = _do(output, run)
        except DamagedCheckpointError:
            move_aside(output, run)
            rows = _do(output, run)
    except UserError as error:
        return Attempt(run, error=str(error), seconds=time.monotonic() - started)
    except Exception as error:  # such as a full disk or too little memory; the other runs may succeed
        write_atomically(complaint, traceback.format_exc())
        first = (str(error).strip().splitlines() or [""])[0]
        text = f"{type(error).__name__}: {first} (traceback in {complaint})"
        return Attempt(run, error=text, seconds=time.monotonic() - started)
    finally:
        gc.collect()  # a model that refers to itself
        gc.unfreeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    complaint.unlink(missing_ok=True)
    if not keep_models:
        shutil.rmtree(output / run.path / MODEL_FOLDER, ignore_errors=True)
    return Attempt(run, rows, seconds=time.monotonic() - started)


def _do(output: Path, run: Run) -> list[dict]:
    folder, do = output / run.path, COMMANDS[run.kind]
    if run.kind in RESUMABLE:
        rows = do(**run.settings, output=folder, resume=folder.exists())["results"]
        return _with_precision(folder, rows)
    write_config(folder, run.settings)
    results = do(**run.settings)
    write_atomically(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    return results["results"]
