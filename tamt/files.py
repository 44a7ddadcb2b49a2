"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that `path` never holds half of one: temporary file beside it, fsync, rename.

    Args:
        path: replaced if it exists; its folder is made if it does not.
        content: text, written as UTF-8, bytes, or a function that writes what is too large to be held twice.

    Raises:
        OSError: the disk is full, say; `path` is then as it was, and the temporary file gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
