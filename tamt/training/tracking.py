"""The metrics of a run in a tracker, beside `metrics.jsonl`: one of accelerate's, by the name it has in `log_with`."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tamt.runtime.choices import Tracker, resolve_tracker
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import telling, write_atomically
from tamt.runtime.untrusted import read_json

PROJECT = "tamt"
"""Name of the project or experiment that holds the runs."""
TRACKER = "tracker.json"
"""Names the run in its tracker, so that a resumed run continues the same log. TensorBoard's log is in the folder."""
IDS: dict[str, Callable[[Any], str]] = {
    "wandb": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
    "trackio": lambda run: run.name,
}
"""How each tracker names its run."""


class Tracking:
    """The log of one run in a tracker; does nothing for "none". Use it in process 0 alone.

    An error of the tracker itself, such as a lost server, is reported once and ends the tracking, not the run. A disk
    that is full ends the run, as `metrics.jsonl` would be next.
    """

    def __init__(self, track: Tracker, path: Path, settings: Mapping[str, Any], resumed: int | None) -> None:
        """Start the log, or continue it.

        Args:
            track: name of the tracker; "auto" is TensorBoard if it is installed, else none.
            path: folder of the run.
            settings: the options of the run, which a new log shows; TensorBoard leaves them to `config.yaml`.
            resumed: step of the checkpoint that the run continues from, None for a new run.

        Raises:
            UserError: the tracker is not installed or does not start.
            CannotWriteError: the disk is full, say.
        """
        self._name, self._path, self._tracker = resolve_tracker(track), path, None
        if self._name == "none":
            return
        former = None if resumed is None else _former_id(self._name, path)
        arguments = _arguments(self._name, path.resolve(), resumed, former)
        PartialState()  # accelerate's log needs it
        try:
            with self._quiet():
                tracker = LOGGER_TYPE_TO_CLASS[self._name](**arguments)
                tracker.start()
                if self._name in IDS and former is None:
                    tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
        except UserError:
            raise
        except Exception as error:  # a tracker's own, of any kind
            raise UserError(
                f"--track {self._name} does not start ({_short(error)}); mend that or give --track none"
            ) from error
        if self._name in IDS:
            content = {"tracker": self._name, "id": IDS[self._name](tracker.tracker)}
            write_atomically(path / TRACKER, json.dumps(content) + "\n")
        self._tracker = tracker

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an optimizer step. Raises CannotWriteError if the disk is full, say."""
        self._call(lambda tracker: tracker.log(dict(values), step=step))

    def close(self) -> None:
        """End the log. Raises CannotWriteError if the disk is full, say."""
        self._call(lambda tracker: tracker.finish())
        self._tracker = None

    def _call(self, function: Callable[[Any], None]) -> None:
        if self._tracker is None:
            return
        try:
            with self._quiet():
                function(self._tracker)
        except UserError:
            raise
        except Exception as error:  # a tracker's own, of any kind
            self._tracker = None
            say(f"{self._name} failed ({_short(error)}); the run continues, and metrics.jsonl has all metrics")

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Keep stdout for the results, and turn an error of the disk into one sentence."""
        with telling(self._path / self._name), redirect_stdout(sys.stderr):
            yield


def _arguments(name: str, path: Path, resumed: int | None, former: str | None) -> dict[str, Any]:
    """What accelerate's tracker is made with. Its `run_name` is a folder of TensorBoard, else the project."""
    run = f"{path.parent.name}/{path.name}"
    if name == "tensorboard":  # hides what an interrupted run logged after the checkpoint
        purge = None if resumed is None else resumed + 1
        return {"run_name": name, "logging_dir": str(path), "purge_step": purge}
    if name == "mlflow":
        return {"experiment_name": PROJECT, "run_name": run, "run_id": former}
    if name == "trackio":
        return {"run_name": PROJECT, "name": former or run, "resume": "allow" if former else "never"}
    return {"run_name": PROJECT, "name": run, "dir": str(path), "id": former, "resume": "allow" if former else None}


def _former_id(name: str, path: Path) -> str | None:
    """The run's name in the tracker, None if it was not tracked there."""
    if name not in IDS or not (path / TRACKER).is_file():
        return None
    content = read_json(path / TRACKER)
    if not isinstance(content, dict) or not isinstance(content.get("id"), str):
        raise UserError(f"{path / TRACKER} is damaged; remove it to start a new log in {name}")
    return content["id"] if content.get("tracker") == name else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
