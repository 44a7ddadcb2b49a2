"""Files that are there whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from filelock import lock_descriptor
from safetensors import SafetensorError

from tamt.runtime.errors import UserError


class CannotWriteError(UserError):
    """A file cannot be written: the disk is full, say. What was written before is as it was."""


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn the error of what cannot write `path` into a CannotWriteError, one sentence with its name."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CannotWriteError(
            f"{path} cannot be written ({reason}), and what was saved before is as it was; make room "
            "or mend the place, then run the same command again, with --resume if it was a run"
        ) from error


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that `path` never holds half of one: temporary file beside it, fsync, rename, fsync of both.

    Args:
        path: replaced if it exists; its folder is made if it does not.
        content: text, written as UTF-8, bytes, or a function that writes what is too large to be held twice.

    Raises:
        CannotWriteError: the disk is full, say; `path` is then as it was, and the temporary file gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def lock(file: IO[Any], what: str, folder: Path) -> None:
    """Keep other processes from what `file`, open for writing, stands for; the lock goes with it, also by a kill.

    Where the file system has no locks, nothing is kept from anything. On Windows others cannot read `file` meanwhile.

    Raises:
        UserError: another has the lock; `what` works in `folder`.
    """
    try:
        locked = lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return
    if not locked:
        raise UserError(f"another {what} is at work in {folder}; wait for it, or stop it")


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is else lost with the power."""
    if os.name == "nt":  # which opens no folder
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync_model_folder(folder: Path) -> None:
    """Wait until a model's folder is on the disk, with every file as readable as its config.json.

    safetensors writes files that nobody else may read.
    """
    permissions = (folder / "config.json").stat().st_mode
    for file in folder.iterdir():
        file.chmod(permissions)
        with file.open("r+b") as opened:  # Windows syncs only what may be written
            os.fsync(opened.fileno())
    sync_folder(folder)


def remove_temporary(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder, and in those in it, when its process was killed."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)
