"""Files of tensors that somebody else may have written: no code in them runs, no memory beyond their size is taken."""

import io
import json
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import check_pulled, read_json

OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of torch before 1.6 begin with."""
MAX_HEADER = 1 << 24
"""Bytes of the header of a safetensors file that are read at most; a mask of BERT-base has 20 thousand."""
METADATA = "__metadata__"
"""The key of the metadata in the header of a safetensors file; all others name tensors."""


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensors by name, and its metadata, strings by name, under `METADATA`.

    Raises:
        ValueError: it is no such file, or names anything twice.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size - 8, MAX_HEADER):
            raise ValueError(f"its header claims {length} bytes")
        header = unique_object(file.read(length))
    metadata = header.setdefault(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no strings by name")
    return header


def check_version(path: Path, kind: str, metadata: Mapping[str, str], version: int) -> None:
    """Check the `format_version` of a file of ours.

    Args:
        path: of the file.
        kind: what a message calls it, "mask" or "sparse".
        metadata: of its header.
        version: the one that this package reads.

    Raises:
        UserError: it is another.
    """
    if metadata.get("format_version") != str(version):
        other = " ".join(str(metadata.get("format_version")).split())[:20]
        raise UserError(
            f"the {kind} file {path} has format version {other}, this tamt reads {version}; install the tamt that "
            "wrote it or write it anew"
        )


def unique_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object that names nothing twice: of two values one reader takes the first, another the last.

    Raises:
        ValueError: it names something twice, or is no JSON object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("it names something twice")
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=unique)
    if not isinstance(value, dict):
        raise ValueError("it holds no names where it should")
    return value


def reproducible(content: bytes) -> bytes:
    """A safetensors file, the names in its header in ascending order; safetensors gives metadata a random one."""
    header, data = split_header(content)
    return join_header(header, data)


def split_header(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of a whole safetensors file and the data after it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), memoryview(content)[end:]


def join_header(header: dict[str, Any], data: memoryview) -> bytes:
    """A safetensors file of a header, its names in ascending order, and the data after it."""
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of 8, as safetensors has it
    return b"".join([len(text).to_bytes(8, "little"), text, data])


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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict in the folder of a model, in one file or in shards, on the CPU.

    Raises:
        UserError: there is none, or a file of it is missing or cannot be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_state(folder / name, f"the checkpoint {folder / name}")
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, folder / f"{name}.index.json")
    raise UserError(f"the folder {folder} holds no model.safetensors; give one that save_pretrained wrote")


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index} has no weight_map of tensors and files; restore it")
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{index} names {file[:100]!r}, which is not in its folder; fetch the whole checkpoint")
        state |= read_state(folder / file, f"the checkpoint {folder / file}")
    if missing := sorted(places.keys() - state.keys()):
        raise UserError(f"{index} names {missing[0][:100]!r}, which no file holds; fetch the whole checkpoint")
    return state


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
