"""The folder of a run that was given none: a new one in `runs/`, named after the run."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path

from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.files import telling
from tamt.training.precision import RunOptions

RUNS = Path("runs")


@contextmanager
def with_output(options: RunOptions, name: Callable[[], Sequence[str]]) -> Iterator[RunOptions]:
    """The options of a run with an output: the one that was asked for, or a new folder `runs/NAME-DATE`.

    All processes get the same folder. If nothing is written to it, it is removed again at the end.

    Args:
        options: those of `tamt train` or `tamt finetune`.
        name: gives the parts of the name. Of a path only the last part counts, so that a model's folder names it.

    Raises:
        CannotWriteError: the folder cannot be made.
    """
    if options.output != type(options).output:
        yield options
        return
    folder = processes.by_first(lambda: _make_folder("-".join([*map(_short, name()), date.today().isoformat()])))
    say(f"the run goes into {folder}")
    try:
        yield replace(options, output=folder)
    finally:
        if processes.first():
            with suppress(OSError):  # it holds a run
                folder.rmdir()


def _make_folder(name: str) -> Path:
    """Make `runs/NAME`, or `runs/NAME-2` and so on if it exists. Commands that start at the same time get their own."""
    with telling(RUNS / name):
        RUNS.mkdir(exist_ok=True)
        for number in count(1):
            folder = RUNS / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise AssertionError("count ends")


def _short(part: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", Path(part).name) or "model"
