"""A study file as YAML: its values by type, and errors that name the line."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

import yaml

from tamt.data import assets as demo
from tamt.masks.file import mask_file
from tamt.masks.hub import is_on_hub
from tamt.options.base import choices_of, without_none
from tamt.options.finetune import FinetuneOptions
from tamt.options.values import as_choice
from tamt.runtime.choices import MASKS_BY_NAME
from tamt.runtime.errors import UserError, did_you_mean
from tamt.runtime.untrusted import MAX_YAML, PlainLoader

CORPORA = ("demo", "wikitext-103")
MAY_BE_0 = {"mask_seeds", "finetune_seeds", *FinetuneOptions.MAY_BE_0}
"""Keys whose whole numbers may be 0."""
KINDS: dict[Any, str] = {
    int: "a whole number of 1 or more",
    float: "a number of 0 or more",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    dict: "keys and values",
    list: "a list",
}
"""What messages call a value of each type."""

Place = tuple[str | int, ...]
"""The place of a value in the file: keys and, in a list, its number from 0."""


class StudyDocument:
    """A YAML file that checks its values one by one; errors name their line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        if not file.is_file():
            raise UserError(f"there is no study {file}; give a YAML file, such as studies/quick.yaml")
        if file.stat().st_size > MAX_YAML:
            raise UserError(f"the study {file} is larger than {MAX_YAML >> 20} MB; give a YAML file")
        try:
            loader = PlainLoader(file.read_text(encoding="utf-8"))
            root = loader.get_single_node()
            content = loader.construct_document(root) if root else None
        except UnicodeDecodeError as error:
            raise UserError(f"the study {file} is not UTF-8 text (byte {error.start}); convert it") from error
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise UserError(f"{file}{where}: not valid YAML ({problem}); correct it") from error
        if root is None or not isinstance(content, dict):
            raise UserError(f"the study {file} has no keys such as models and methods; see docs/studies.md")
        self._root: yaml.Node = root
        self.content: dict[Any, Any] = content

    def error(self, place: Place, text: str) -> UserError:
        """An error that names the line of a place, or of the nearest place above it that is in the file."""
        node, line = self._root, 1
        for key in place if place[:1] != ("also",) or self._is_there(place) else place[2:]:
            found = self._child(node, key)
            if found is None:
                break
            node, line = found
        return UserError(f"{self._file}, line {line}: {text}")

    def mapping(
        self,
        place: Place,
        content: Any,
        kinds: Mapping[str, Any],
        also_known: Sequence[str] = (),
        of_study: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The values of a mapping by key, each of its key's type; a key without a value is left out.

        Args:
            place: of the mapping.
            content: of the mapping.
            kinds: the keys that it may have, with their types.
            also_known: further keys that the message on an unknown one lists.
            of_study: keys that it cannot have, with the keys of the study that set the same.
        """
        if not isinstance(content, dict):
            raise self.error(place, f"{_path(place)} has no keys and values; write key: value lines under it")
        for key in content:
            if key not in kinds:
                known = [*kinds, *also_known]
                hint = did_you_mean(key, known, f"the keys are {', '.join(known)}")
                if key in of_study:
                    hint = f"give {of_study[key]} as a key of the study"
                where = f" in {_path(place)}" if place else ""
                raise self.error((*place, key), f"there is no key {key!r}{where}; {hint}")
        return {
            key: self.value((*place, key), value, kinds[key]) for key, value in content.items() if value is not None
        }

    def value(self, place: Place, value: Any, kind: Any) -> Any:
        """A value as `kind`. A list may be given as its only element; a path is relative to the file's folder."""
        kind = without_none(kind)
        if get_origin(kind) is list:
            (element,) = get_args(kind)
            if not isinstance(value, list):
                return [self.value(place, value, element)]
            if not value:
                raise self.error(place, f"{_path(place)} is an empty list; fill it or leave it out")
            values = [self.value((*place, number), item, element) for number, item in enumerate(value)]
            self.check_once(place, values)
            return values
        if kind is dict and place[-1] == "tasks" and isinstance(value, str | list):
            names = [value] if isinstance(value, str) else value
            values = [self.value((*place, number), name, str) for number, name in enumerate(names)]
            self.check_once(place, values)
            return {name: {} for name in values}
        if choices := choices_of(kind):
            value = as_choice(value)
            if value not in choices:
                message = f"{_path(place)} is {value!r}, not one of {', '.join(choices)}"
                raise self.error(place, f"{message}; {_hint(value, choices)}")
            return value
        if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
            with suppress(ValueError):  # without a point, 5e-5 is text in YAML
                value = float(value)
        if not _is_of_kind(place, value, kind):
            raise self.error(place, f"{_path(place)} is {value!r}, not {_wanted(place, kind)}; correct it")
        return self.path(place, value) if kind is Path else value

    def check_once(self, place: Place, values: Sequence[Any]) -> None:
        """Check that a list has no duplicates."""
        for number, value in enumerate(values):
            if value in values[:number]:
                raise self.error((*place, number), f"{_path(place)} lists {value!r} twice; leave one out")

    def path(self, place: Place, text: str) -> Path:
        """A path, which is relative to the file's folder."""
        try:
            return self._file.resolve().parent / Path(text).expanduser()
        except RuntimeError as error:  # of a home that is not known
            raise self.error(place, f"{_path(place)} is {text!r}, of a user who has no home; correct it") from error

    def model(self, place: Place, name: str) -> str:
        """The folder of a model, relative to the file's folder, or the hub name if there is no such folder.

        Raises UserError if there is no such folder, and the name can be none of the hub.
        """
        folder = self.path(place, name)
        if name in demo.MODELS:
            return name
        if folder.is_dir():
            return str(folder.resolve())
        if name.startswith(("~", ".", "/")) or name.count("/") > 1:  # no hub name
            raise self.error(place, f"{_path(place)} is {name!r}, and there is no such folder; correct the path")
        return name

    def corpus(self, place: Place, name: str) -> str:
        """The name of a corpus, or the path of a text file."""
        return name if name in CORPORA else str(self.path(place, name))

    def initial(self, place: Place, name: str) -> str:
        """The name of a mask to start from, also on the hub, or the path of a mask file, also of a run folder."""
        if name in MASKS_BY_NAME or is_on_hub(name):
            return name
        path = mask_file(self.path(place, name))
        if path is None or not path.is_file():
            known = ", ".join(MASKS_BY_NAME)
            what = f"not one of {known} and no mask file or run folder"
            raise self.error(place, f"{_path(place)} is {name!r}, {what}; correct it")
        return str(path)

    def _is_there(self, place: Place) -> bool:
        node = self._root
        for key in place[:3]:
            found = self._child(node, key)
            if found is None:
                return False
            node, _ = found
        return True

    @staticmethod
    def _child(node: yaml.Node, key: str | int) -> tuple[yaml.Node, int] | None:
        """The node at a key or a number, and its line."""
        if isinstance(node, yaml.MappingNode):
            for name, child in node.value:
                if name.value == str(key):
                    return child, name.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            if isinstance(key, int) and key < len(node.value):
                child = node.value[key]
                return child, child.start_mark.line + 1
            for child in node.value:  # a name in a list, such as a task
                if child.value == key:
                    return child, child.start_mark.line + 1
        return None


def _path(place: Place) -> str:
    """A place as messages write it: search.imp.steps[0]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".") or "the study"


def _may_be_0(place: Place) -> bool:
    return bool(MAY_BE_0 & set(place))


def _wanted(place: Place, kind: Any) -> str:
    return "a whole number of 0 or more" if kind is int and _may_be_0(place) else KINDS[kind]


def _is_of_kind(place: Place, value: Any, kind: Any) -> bool:
    """Whether a value has the type of its key, and is in its range."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int) and kind is int:
        return value >= (0 if _may_be_0(place) else 1)
    if isinstance(value, float) and kind is float:
        return math.isfinite(value) and value >= 0
    if isinstance(value, str) and kind in {str, Path}:
        return bool(value.strip())
    return kind in {dict, list} and isinstance(value, kind)


def _hint(value: Any, choices: Sequence[str]) -> str:
    name = str(value).lower()
    if "imp" in name and "kd" in name:
        return "IMP trains the weights on MLM, and KD is an objective of mask training: tamt-kd"
    return did_you_mean(name, choices, "choose one of them")
