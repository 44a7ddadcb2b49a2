"""Text files that somebody else may have written, read without taking more memory than they hold. Imports no torch."""

import json
from pathlib import Path
from typing import Any

import yaml

from tamt.runtime.errors import UserError

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
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> Any:
        """A whole number. The pattern 2:4 is text, and not 124 in base 60."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)


def lfs_pointer(path: Path) -> bool:
    """Whether a file is the few lines that Git keeps instead of a large one, which `git lfs pull` fetches."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def check_pulled(path: Path) -> None:
    """Check that a file is not what Git LFS puts there instead. Raises UserError if it is."""
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
