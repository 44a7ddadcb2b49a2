"""The folder of one run: its settings, metrics, checkpoints and results."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from tamt import __version__
from tamt.errors import UserError
from tamt.files import write_atomically

CONFIG = "config.yaml"
RESULTS = "results.json"
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
WRITTEN_BY = "# written by tamt "
"""First line of `config.yaml`, before the version: a comment, so that the file is still one of options."""


class DamagedCheckpointError(UserError):
    """The checkpoint of an interrupted run cannot be read."""


class RunFolder:
    """A folder that holds one run: `config.yaml`, `metrics.jsonl`, TensorBoard events, checkpoint, `results.json`.

    Use `RunFolder.start`. As a context manager it closes its files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metrics = path / METRICS
        if metrics.is_file():  # of a run that may have been killed in the middle of a line
            os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        self._metrics = metrics.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(path / "tensorboard"))

    @classmethod
    def start(cls, path: Path, settings: Mapping[str, Any], resume: bool = False) -> "RunFolder":
        """Make the folder of a new run, or open that of an interrupted one.

        Args:
            path: must not exist or be empty, unless `resume`.
            settings: what the run was asked for, written to `config.yaml`; values that YAML holds, or paths.
            resume: go on with the run in `path`, which must have been started with the same settings.

        Raises:
            UserError: the folder holds something already, or on `resume` another run or a finished one.
        """
        config = path / CONFIG
        if path.exists() and not path.is_dir():
            raise UserError(f"the output {path} is a file; give a new folder")
        if config.is_file() and resume:
            _check_same(path, settings)
            if (path / RESULTS).is_file():
                raise UserError(f"the run in {path} is finished; give a new --output for another")
            return cls(path)
        if path.exists() and any(path.iterdir()):
            raise UserError(
                f"the output folder {path} is not empty and nothing in it is overwritten; "
                "give a new --output, or --resume to go on with an interrupted run"
            )
        write_config(path, settings)
        return cls(path)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._events.close()

    def log(self, step: int, **values: float) -> None:
        """Add one line to `metrics.jsonl` and the values to TensorBoard, for optimizer step `step`."""
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, atomically. `state` holds what `torch.load(weights_only=True)` reads back."""
        write_atomically(self.path / CHECKPOINT, lambda file: torch.save({"step": step, **state}, file))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, with its `step`, or None if there is none.

        Raises:
            DamagedCheckpointError: it cannot be read.
        """
        source = self.path / CHECKPOINT
        if not source.is_file():
            return None
        try:
            return torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly anything on a damaged file
            raise DamagedCheckpointError(
                f"the checkpoint {source} cannot be read ({type(error).__name__}); start the run anew in another folder"
            ) from error

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`, which says that the run is finished, and drop the checkpoint."""
        write_atomically(self.path / RESULTS, json.dumps(results, indent=2) + "\n")
        (self.path / CHECKPOINT).unlink(missing_ok=True)


def write_config(path: Path, settings: Mapping[str, Any]) -> None:
    """Write `config.yaml` into the run folder `path`, which is made if it is not there."""
    plain = {key: _plain(value) for key, value in settings.items()}
    content = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_atomically(path / CONFIG, f"{WRITTEN_BY}{__version__}\n{content}")


def version_of(path: Path) -> str | None:
    """The version of tamt that started the run in `path`, None if its `config.yaml` does not say."""
    with (path / CONFIG).open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix(WRITTEN_BY).strip() if first.startswith(WRITTEN_BY) else None


def finished_results(path: Path, settings: Mapping[str, Any]) -> list[dict] | None:
    """The results of the finished run in `path`, None if there is none yet.

    Raises:
        UserError: the run there was started with other values of `settings`, which may be some of all.
    """
    if not (path / RESULTS).is_file():
        return None
    _check_same(path, settings)
    return json.loads((path / RESULTS).read_text(encoding="utf-8"))["results"]


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    started = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8")) or {}
    for key, value in settings.items():
        if started.get(key) != _plain(value):
            raise UserError(
                f"the run in {path} was started with {key} = {started.get(key)!r}, not {_plain(value)!r}; "
                "go on with its own settings or give a new --output"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
