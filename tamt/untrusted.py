"""Files that somebody else may have written: read without executing anything or taking more memory than they hold."""

import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from tamt.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_YAML = 1 << 20
"""Bytes of a YAML file. Ours have some hundreds; a study of thousands of runs has less than this."""


class PlainLoader(yaml.SafeLoader):
    """YAML's safe loader without aliases: nine of nine each make a gigabyte out of one line."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias, *name; write the value out")
        return super().compose_node(parent, index)


def lfs_pointer(path: Path) -> bool:
    """Whether a file is the few lines that Git keeps in place of a large one, which `git lfs pull` fetches."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


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
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON ({error}); restore it or write it anew") from error


def load_tensors(file: BinaryIO) -> Any:
    """What `torch.save` wrote from here to the end of `file`, on the CPU; no code in it is executed.

    Raises:
        ValueError: it is no file of torch 1.6 or later, or its records claim more bytes than are there.
        Exception: torch.load raises nearly anything on a damaged file.
    """
    start = file.tell()
    size = file.seek(0, 2) - start
    file.seek(start)
    if not zipfile.is_zipfile(file):  # before 1.6 torch took memory as the file asked, and read afterwards
        raise ValueError("it was not written by torch 1.6 or later")
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > size:
        raise ValueError("its records claim more bytes than it holds")
    file.seek(start)
    return torch.load(file, map_location="cpu", weights_only=True)
