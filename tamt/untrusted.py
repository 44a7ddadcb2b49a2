"""Files that somebody else may have written: read without executing anything or taking more memory than they hold."""

import io
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from safetensors.torch import load_file
from torch import Tensor

from tamt.errors import UserError

OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of torch before 1.6 begin with."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_YAML = 1 << 20
"""Bytes of a YAML file. Ours have some hundreds; a study of thousands of runs has less than this."""


class PlainLoader(yaml.SafeLoader):
    """YAML's safe loader without aliases, of which nine of nine each make a gigabyte out of one line, and without
    names that are there twice, of which the last would count."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias, *name; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def lfs_pointer(path: Path) -> bool:
    """Whether a file is the few lines that Git keeps in place of a large one, which `git lfs pull` fetches."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def check_pulled(path: Path) -> None:
    """Check that a file is not what Git LFS puts in place of one. Raises UserError if it is."""
    if lfs_pointer(path):
        raise UserError(f"{path} is a pointer of Git LFS and not the file itself; run git lfs pull in {path.parent}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file. Raises UserError if it cannot be read, is no mapping with names, or holds aliases."""
    try:
        if path.stat().st_size > MAX_YAML:
            raise yaml.YAMLError(f"it is larger than {MAX_YAML >> 20} MB")
        content = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)  # a subclass of the safe loader
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is no YAML file of options ({reason}{where}); correct it") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds no options, 'name: value' on each line; correct it")
    return content


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON ({error}); restore it or write it anew") from error


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
    import torch  # here, as the command line reads YAML by this module and answers without torch

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
