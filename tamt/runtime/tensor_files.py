"""Files of tensors that somebody else may have written: no code in them runs, no memory beyond their size is taken."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import check_pulled

OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of torch before 1.6 begin with."""


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors by name of a `.safetensors` file or of one that `torch.save` wrote, on the CPU.

    Args:
        path: of the file.
        what: how a message begins that names it.

    Raises:
        UserError: it cannot be read, or does not hold tensors by name alone.
    """
    check_pulled(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            content = load_tensors(file)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise UserError(
            f"{what} cannot be read as a dict of tensors, and nothing in it is executed to find out more "
            f"({type(error).__name__}); give a file that holds only tensors"
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{what} holds no dict of tensors; give one that holds tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{what} holds {str(name)[:100]!r}, which is no tensor; remove it or give another file")
    return content


def load_tensors(file: BinaryIO) -> Any:
    """What `torch.save` wrote from here to the end of `file`, on the CPU; no code in it is executed.

    Raises:
        ValueError: it is no file of torch, or claims more bytes than are there.
        Exception: torch.load raises nearly anything on a damaged file.
    """
    start = file.tell()
    size = file.seek(0, 2) - start
    file.seek(start)
    if file.read(len(OLD_TORCH)) == OLD_TORCH:
        content = OLD_TORCH + file.read()
        _check_old(content, size)
        # From memory, as torch takes a file on a disk for an archive of a still older kind first.
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    file.seek(start)
    if not zipfile.is_zipfile(file):
        raise ValueError("it was not written by torch")
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > size:
        raise ValueError("its records claim more bytes than it holds")
    file.seek(start)
    return torch.load(file, map_location="cpu", weights_only=True)


def _check_old(content: bytes, size: int) -> None:
    """Check what torch before 1.6 wrote: pickles of a number, a version, the machine, the tensors, and their bytes.

    Memory for a tensor is taken as its pickle asks, before its bytes are read: so no number in it may be larger than
    the file. Raises ValueError if one is.
    """
    pickles = io.BytesIO(content[len(OLD_TORCH) :])
    for _ in ("version", "machine"):
        list(pickletools.genops(pickles))
    if any(isinstance(value, int) and value > size for _, value, _ in pickletools.genops(pickles)):
        raise ValueError("its records claim more bytes than it holds")
