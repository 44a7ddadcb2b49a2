"""Checkpoint files: what `torch.save` writes, after its digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.runtime.tensor_files import load_tensors

MAGIC = b"tamt checkpoint 1\n"
DIGEST = hashlib.sha256
DIGEST_BYTES = 32
CHUNK = 1 << 20


class DamagedCheckpointError(UserError):
    """No checkpoint of an interrupted run can be used."""


class _Digesting:
    """A file that computes the digest of what is written, and remembers the error of a failed write.

    On a full disk torch raises a RuntimeError about positions in its archive instead of the OSError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = DIGEST()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`, which `torch.load(weights_only=True)` must read back, to `path`: completely or not at all.

    The file holds the line `tamt checkpoint 1`, the 32 bytes of the SHA-256 of the rest, and torch's file.

    Raises:
        CannotWriteError: see `write_atomically`.
    """

    def write(file: BinaryIO) -> None:
        file.write(MAGIC + bytes(DIGEST_BYTES))
        digesting = _Digesting(file)
        try:
            torch.save(dict(state), cast(BinaryIO, digesting))
        except RuntimeError as error:
            raise digesting.error or error from error
        file.seek(len(MAGIC))
        file.write(digesting.digest.digest())

    write_atomically(path, write)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU. It is parsed only if its digest is right.

    Raises:
        DamagedCheckpointError: it cannot be read, or its digest is wrong.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin as one")
            stored, digest = file.read(DIGEST_BYTES), DIGEST()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            if digest.digest() != stored:
                raise ValueError("its digest is wrong")
            file.seek(len(MAGIC) + DIGEST_BYTES)
            state = load_tensors(file)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read ({_reason(error)})") from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read (it holds no state)")
    return state


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else type(error).__name__
