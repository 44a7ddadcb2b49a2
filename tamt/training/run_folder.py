"""The folder of one run: its settings, metrics, checkpoints and results."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tamt.runtime import processes
from tamt.runtime.choices import KEEP, Tracker
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import lock, remove_temporary, telling, write_atomically
from tamt.runtime.untrusted import read_json, read_yaml
from tamt.training.checkpoint import DamagedCheckpointError, read_checkpoint, write_checkpoint
from tamt.training.tracking import Tracking
from tamt.version import __version__

CONFIG = "config.yaml"
RESULTS = "results.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
LOCK = ".run.lock"
"""Locked on Windows while a run is active, as a locked `metrics.jsonl` could not be read there; elsewhere that is."""
RESUMED = "resumed"
"""Key of the line in `metrics.jsonl` that marks a resume."""
WRITTEN_BY = "# written by tamt "
"""First line of `config.yaml`, before the version: a comment, so that the file is still one of options."""
HARMLESS = {"save_every", "log_every", "keep", "track", "no_cuda_graphs", "activation_checkpointing"}
"""Settings that do not change the results of a run, so that it may be continued with other values."""
LEFT_OUT = ("pattern", "structure")
"""Settings that are only named where they are given."""
AUTO = "auto"
"""Value of a setting that the run chose itself; it agrees with any choice."""


class RunFolder:
    """A folder that holds one run: `config.yaml`, `metrics.jsonl`, checkpoints, `results.json`.

    As a context manager it closes its files. If several processes share the run, the first one writes, and all read the
    checkpoint.

    Attributes:
        path: the folder.
        resumed: the step of the checkpoint that the run continues from; 0 for a run from its start.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        resume: bool = False,
        keep: int = KEEP,
        track: Tracker = "none",
    ) -> None:
        """Make the folder of a new run, or open that of an interrupted one.

        Lines that an interrupted run logged after its newest good checkpoint are dropped, as they will be logged again.

        Args:
            path: must not exist or be empty, unless `resume`.
            settings: written to `config.yaml`; values that YAML holds, or paths.
            resume: continue the run in `path`, which must have been started with the same settings, except those in
                `HARMLESS`.
            keep: how many checkpoints to keep.
            track: the tracker that shows the metrics too.

        Raises:
            UserError: the folder is not empty, or on `resume` holds another run, a finished one, or an active one.
            DamagedCheckpointError: there are checkpoints, and none of them can be read.
        """
        self.path = path
        self._keep = keep
        with ExitStack() as files:  # closed at once, and with them the lock, if the start fails
            there = processes.by_first(partial(self._open, files, settings, resume))
            self._checkpoint = self._newest_checkpoint()
            self.resumed: int = self._checkpoint["step"] if self._checkpoint else 0
            self._seconds_before: float = self._checkpoint["seconds"] if self._checkpoint else 0.0
            self._saved, self._opened = self.resumed, time.monotonic()
            steps = processes.gather(self.resumed)
            if self.resumed != steps[0] or len(set(steps)) > 1:
                number = next(i for i, step in enumerate(steps) if step != steps[0])
                raise UserError(
                    f"process {number} finds the checkpoint of step {steps[number]} in {path} and process 0 that of "
                    f"step {steps[0]}; give an --output on a file system that all machines share"
                )
            if processes.first():
                remove_temporary(path)
                if there:
                    self._drop_later_lines()
                self._tracking = Tracking(track, path, settings, self.resumed if there else None)
            self._files = files.pop_all()

    def _open(self, files: ExitStack, settings: Mapping[str, Any], resume: bool) -> bool:
        """Make the folder of a run, or check that of one to resume; whether there is one to resume.

        The folder is locked against a second run before anything in it is read or written. `metrics.jsonl`, which this
        run writes to its end, stays open.
        """
        check_output(self.path, resume)  # before a file is made in a folder that is refused
        with telling(self.path / METRICS):
            self.path.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line that cannot be written fails at once, and is not tried again when the file is closed.
            self._metrics = files.enter_context((self.path / METRICS).open("ab", buffering=0))
            locked = files.enter_context((self.path / LOCK).open("wb")) if os.name == "nt" else self._metrics
        lock(locked, "run", self.path)
        if check_output(self.path, resume):
            _check_same(self.path, settings)
            return True
        if resume:
            say(f"{self.path} holds no run to resume, so a new one begins")
        write_config(self.path, settings)
        return False

    def _drop_later_lines(self) -> None:
        """Drop the lines of `metrics.jsonl` after the checkpoint, as they will be logged again."""
        metrics = self.path / METRICS
        with telling(metrics):
            before = metrics.read_bytes()[: self._checkpoint["metrics_bytes"] if self._checkpoint else 0]
            os.truncate(metrics, before.rfind(b"\n") + 1)
            self._metrics.seek(0, os.SEEK_END)

    @property
    def seconds(self) -> float:
        """The time of the run in seconds, without the steps that an interruption lost."""
        return self._seconds_before + time.monotonic() - self._opened

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if not processes.first():
            return
        self._files.close()
        (self.path / LOCK).unlink(missing_ok=True)
        self._tracking.close()

    def log(self, step: int, **values: float) -> None:
        """Add one line to `metrics.jsonl` and the values to the tracker, for optimizer step `step`.

        Raises:
            CannotWriteError: for example on a full disk.
        """
        if not processes.first():
            return
        self._write_metrics({"step": step, **values})
        self._tracking.log(step, values)

    def _write_metrics(self, values: Mapping[str, float]) -> None:
        line = (json.dumps(values) + "\n").encode()
        with telling(self.path / METRICS):
            while line:
                line = line[self._metrics.write(line) :]

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Save a checkpoint, atomically, and drop the oldest ones; nothing is done if the newest is of this step.

        Args:
            step: the last optimizer step that was taken.
            state: what `torch.load(weights_only=True)` must read back.

        Raises:
            CannotWriteError: for example on a full disk; earlier checkpoints are still there.
        """
        if step == self._saved:
            return
        if processes.first():
            self._save_checkpoint(step, state)
        self._saved = step
        processes.wait()

    def _save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        with telling(self.path / METRICS):
            os.fsync(self._metrics.fileno())  # the checkpoint relies on the lines before it
        own = {"step": step, "seconds": self.seconds, "metrics_bytes": self._metrics.tell()}
        write_checkpoint(self.path / CHECKPOINTS / f"step-{step}.checkpoint", {**own, **state})
        # Those of later steps are damaged: the run continued from an earlier one.
        kept = [path for path in self._checkpoints() if _step_of(path) <= step][: self._keep]
        for path in self._checkpoints():
            if path not in kept:
                path.unlink(missing_ok=True)

    def resume(self, restore: Callable[[Mapping[str, Any]], None]) -> int:
        """Call `restore` with the newest good checkpoint, if there is one.

        A line with `RESUMED` in `metrics.jsonl` marks the place: the clock stood still, and another machine may
        continue.

        Returns:
            The last step that was taken; 0 at the start of a run.

        Raises:
            DamagedCheckpointError: its content does not fit the run.
            UserError: what `restore` raises.
        """
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return 0
        try:
            restore(checkpoint)
        except UserError:
            raise
        except Exception as error:  # nearly anything, where names, kinds or shapes differ
            raise DamagedCheckpointError(
                f"the checkpoint of step {self.resumed} in {self.path / CHECKPOINTS} does not fit the run "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); start the run anew in another folder"
            ) from error
        say(f"resumed {self.path} at step {self.resumed}")
        if processes.first():
            self._write_metrics({"step": self.resumed, RESUMED: True})
        return self.resumed

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`, which says that the run is finished, and drop the checkpoints."""
        processes.wait()  # others may still read
        if not processes.first():
            return
        write_atomically(self.path / RESULTS, json.dumps(results, indent=2) + "\n")
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        """The files of the checkpoints, the newest first."""
        found = (self.path / CHECKPOINTS).glob("step-*.checkpoint")
        return sorted((path for path in found if _step_of(path) > 0), key=_step_of, reverse=True)

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """The newest undamaged checkpoint; damaged ones are logged. None if there is no checkpoint."""
        paths, damaged = self._checkpoints(), []
        for path in paths:
            try:
                checkpoint = read_checkpoint(path)
                _check_own(checkpoint, path)
            except DamagedCheckpointError as error:
                damaged.append(error)
                continue
            for complaint in damaged:
                say(f"{complaint}, so the run continues from the one of step {checkpoint['step']}")
            return checkpoint
        if damaged:
            raise DamagedCheckpointError(
                f"{' and '.join(map(str, damaged))}; restore one from a copy, or start the run anew in another folder"
            )
        return None


def check_output(path: Path, resume: bool) -> bool:
    """Whether a run in `path` resumes one; also called before anything is loaded.

    Raises:
        UserError: the folder holds anything but an interrupted run that is to be resumed.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"the output {path} is a file; give a new folder")
    if (path / CONFIG).is_file() and resume:
        if (path / RESULTS).is_file():
            raise UserError(f"the run in {path} is finished; give a new --output for another")
        return True
    if path.exists() and not all(map(_is_of_broken_start, path.iterdir())):
        if resume:
            raise UserError(
                f"the output folder {path} is not empty and has no {CONFIG} of a run to resume; "
                "give the folder of the interrupted run, or a new --output"
            )
        raise UserError(
            f"the output folder {path} is not empty and nothing in it is overwritten; "
            "give a new --output, or --resume to continue an interrupted run"
        )
    return False


def _is_of_broken_start(file: Path) -> bool:
    """Whether a start that was killed before it wrote `config.yaml` may have left a file."""
    return file.match(f".{CONFIG}.*.tmp") or (file.name in (METRICS, LOCK) and file.stat().st_size == 0)


def processes_of_run(path: Path, asked: int | None, resume: bool) -> int | None:
    """The number of processes whose batches make a step of the run in `path`; None for one.

    Args:
        path: folder of the run.
        asked: the number that the command asks for.
        resume: use the number that an earlier run there began with.
    """
    if asked is None and resume and (path / CONFIG).is_file():
        started = started_with(path, "processes_of_step")
        return started if isinstance(started, int) and started > 1 else None
    wanted = asked or processes.count()
    return wanted if wanted > 1 else None


def started_with(path: Path, setting: str) -> Any:
    """A setting of the run in `path`; None if there is no run, or no such setting."""
    return read_yaml(path / CONFIG).get(setting) if (path / CONFIG).is_file() else None


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.stem.removeprefix("step-")
    return int(number) if number.isascii() and number.isdecimal() else 0


def _check_own(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Check the entries of a checkpoint that the run folder itself writes."""
    kinds = {"step": int, "seconds": float, "metrics_bytes": int}
    if checkpoint.get("step") != _step_of(path) or any(
        not isinstance(checkpoint.get(name), kind) or not checkpoint[name] >= 0 for name, kind in kinds.items()
    ):
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read (it is not of the step in its name)")


def write_config(path: Path, settings: Mapping[str, Any]) -> None:
    """Write `config.yaml` into the run folder `path`, creating the folder if necessary."""
    plain = {key: _plain(value) for key, value in settings.items()}
    content = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_atomically(path / CONFIG, f"{WRITTEN_BY}{__version__}\n{content}")


def version_of(path: Path) -> str | None:
    """The version of tamt that started the run in `path`, None if its `config.yaml` does not say."""
    with (path / CONFIG).open(encoding="utf-8", errors="replace") as file:
        first = file.readline(1000)
    return first.removeprefix(WRITTEN_BY).strip() if first.startswith(WRITTEN_BY) else None


def finished_results(path: Path, settings: Mapping[str, Any]) -> list[dict] | None:
    """The results of the finished run in `path`, None if there is none yet.

    Raises:
        UserError: the run there was started with other values of `settings`, which need not be complete, or its
            files are damaged.
    """
    if not (path / RESULTS).is_file():
        return None
    _check_same(path, settings)
    content = read_json(path / RESULTS)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or not results or not all(isinstance(row, dict) for row in results):
        raise UserError(f"{path / RESULTS} is damaged: it holds no results; start the run anew in another folder")
    return results


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """The output may be named in another way, or have moved with the study that it is in."""
    started = read_yaml(path / CONFIG)
    former, now = apart(Path(str(started.get("output"))), Path(str(settings.get("output"))))
    for key in dict.fromkeys([*settings, *LEFT_OUT]):
        value, there = settings.get(key), started.get(key)
        if key in HARMLESS or key == "output" or value == AUTO:
            continue
        if not agrees(_plain(value), there, former, now):
            raise UserError(
                f"the run in {path} was started with {key} = {there!r}, not {_plain(value)!r}; "
                "continue it with its own settings or give a new --output"
            )


def agrees(asked: Any, there: Any, former: Path, now: Path) -> bool:
    """Whether a setting is that of a started run, or each of its paths was moved from below `former` to below `now`."""
    if isinstance(asked, list) and isinstance(there, list):
        return len(asked) == len(there) and all(agrees(*pair, former, now) for pair in zip(asked, there, strict=True))
    if asked != there and isinstance(there, str) and Path(there).is_relative_to(former):
        there = str(now / Path(there).relative_to(former))
    return bool(asked == there)


def apart(former: Path, now: Path) -> tuple[Path, Path]:
    """Two paths without the parts that they have in common at their ends."""
    while former.name and former.name == now.name:
        former, now = former.parent, now.parent
    return former, now


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
