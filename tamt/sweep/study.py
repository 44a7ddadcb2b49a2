"""The study file: what a sweep is asked for, checked key by key before anything runs."""

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from tamt.data import assets as demo
from tamt.data.tasks import TASKS, find_task
from tamt.methods import IMP, METHODS, STAGES, MethodName, variant_options
from tamt.options.base import Options, choices_of, without_none
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.runtime.choices import MASKS_BY_NAME, Scope, Scores
from tamt.runtime.errors import UserError, did_you_mean
from tamt.runtime.untrusted import MAX_YAML, PlainLoader
from tamt.terms import parse_objective

CORPORA = ("demo", "wikitext-103")
ALL = "all"
"""Of `train_samples`: every row there is."""

Place = tuple[str | int, ...]
"""Where a value stands in the file: keys and, in a list, its number from 0."""


def options_of(kind: type[Options], *without: str) -> dict[str, Any]:
    """The options of a command and their types, those that a study sets by other keys left out."""
    left_out = {*without, "model", "output", "seed", "resume"}
    return {field.name: field.type for field in fields(kind) if field.name not in left_out}


VARIANTS = variant_options()
"""Options of the search that a study lists; each value is a search of its own."""
SEARCH_OPTIONS = options_of(TrainOptions, "method", "corpus", "dev_corpus", "sparsity", *VARIANTS) | {
    "steps": list[int]
}
FINETUNE_OPTIONS = options_of(FinetuneOptions, "task", "mask", "seeds")
MASK_TRAINING = {"objective", "initial", "scores", "save_at", "ranking", "kd_weight", "threshold_every"}
"""Options of the search that only the methods of mask training have."""
TRAINING = {"steps", "accumulation", "lr", "head_warmup_steps", "log_every", "eval_every", "save_every"}
"""Options of the search that the one-shot methods do not have."""
OF_FILES = {"train_file", "dev_file", "text_column", "label_column"}
"""Options of the task classification alone."""

KEYS: dict[str, Any] = {
    "models": list[str],
    "methods": list[MethodName],
    "sparsities": list[float],
    "mask_seeds": list[int],
    "initial": list[str],
    "objective": list[str],
    "scores": list[Scores],
    "scope": list[Scope],
    "corpus": list[str],
    "dev_corpus": list[str],
    "search": dict,
    "tasks": dict,
    "finetune": dict,
    "finetune_seeds": list[int],
    "data_dir": Path,
    "full_model": bool,
}
"""The keys of a study that its parts may have too, and their types."""
WHOLE_STUDY: dict[str, Any] = {"output": Path, "keep_models": bool, "also": list}
SEEDS = {"mask_seeds", "finetune_seeds"}


@dataclass(frozen=True)
class Part:
    """One grid of a study: every value with every other. The fields are the keys of docs/studies.md.

    Attributes:
        variants: the values of each of `VARIANTS`, None for the default.
        search: the options of `tamt train` for each method; `steps` and `save_at` are lists.
        tasks: the options of `tamt finetune` by the study's name of each task; `train_samples` is a list of int, or
            None for all rows, and `lr` a list.
    """

    models: list[str]
    methods: list[str]
    sparsities: list[float]
    mask_seeds: list[int]
    variants: dict[str, list[Any]]
    corpus: list[str]
    dev_corpus: list[str]
    search: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    finetune_seeds: list[int]
    full_model: bool


@dataclass(frozen=True)
class Study:
    """A study: its grids, the folder of its runs, and whether fine-tuned models are kept."""

    file: Path
    output: Path
    keep_models: bool
    parts: list[Part]


def load_study(file: Path, output: Path | None = None, data_dir: Path | None = None) -> Study:
    """Read and check a study.

    Args:
        file: the YAML file; paths in it are relative to its folder.
        output: in place of the file's `output`.
        data_dir: in place of the file's `data_dir`.

    Raises:
        UserError: the file is missing or no YAML; a key is unknown, twice there, of the wrong type or missing; settings
            do not go together. The message names the line.
    """
    document = _Document(file)
    whole = document.mapping((), document.content, KEYS | WHOLE_STUDY)
    folder = output or whole.get("output") or file.parent / file.stem
    if folder.is_file():
        raise UserError(f"the output {folder} is a file; give a folder")
    base = {key: value for key, value in document.content.items() if key not in WHOLE_STUDY}
    parts = [_part(document, (), base, data_dir)]
    for number, replaced in enumerate(whole.get("also", [])):
        document.mapping(("also", number), replaced, KEYS)
        parts.append(_part(document, ("also", number), {**base, **replaced}, data_dir))
    return Study(file, folder.resolve(), whole.get("keep_models", False), parts)


def _part(document: "_Document", place: Place, content: Mapping[str, Any], data_dir: Path | None) -> Part:
    """Check one grid. Values that a part takes from the study are looked for in the file at the study's place too."""
    found = document.mapping(place, content, KEYS)
    for key in ("models", "methods", "sparsities"):
        if key not in found:
            raise document.error(place, f"the key {key} is missing; a study needs models, methods and sparsities")
    for number, sparsity in enumerate(found["sparsities"]):
        if not 0 < sparsity < 1:
            at = (*place, "sparsities", number)
            raise document.error(at, f"the sparsity {sparsity:g} is not between 0 and 1; give 0.7 for 70 % zeros, say")
    variants = _variants(document, place, found)
    corpus, dev_corpus = _texts(document, place, found)
    search = _search_options(document, (*place, "search"), found.get("search", {}), found["methods"])
    data_dir = data_dir or found.get("data_dir")
    if data_dir is not None and not data_dir.is_dir():
        raise document.error((*place, "data_dir"), f"there is no folder {data_dir}; correct the path")
    return Part(
        models=[document.model(name) for name in found["models"]],
        methods=found["methods"],
        sparsities=found["sparsities"],
        mask_seeds=found.get("mask_seeds", [0]),
        variants=variants,
        corpus=corpus,
        dev_corpus=dev_corpus,
        search=search,
        tasks=_task_options(document, place, found, data_dir),
        finetune_seeds=found.get("finetune_seeds", [0]),
        full_model=found.get("full_model", True),
    )


def _variants(document: "_Document", place: Place, found: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each of `VARIANTS`, of which some method that is asked for must have each."""
    methods = found["methods"]
    for key in VARIANTS:
        having = [method.name for method in METHODS.values() if key in method.variants]
        if key in found and not set(having) & set(methods):
            every = having == [method.name for method in METHODS.values() if method.trains_scores]
            kind = "mask training and no tamt method is" if every else f"{' and '.join(having)}, which is not"
            raise document.error((*place, key), f"{key} is for {kind} asked for; leave it out or add one")
    try:
        for text in found.get("objective", []):
            parse_objective(text)
    except UserError as error:
        raise document.error((*place, "objective"), str(error)) from error
    if "tamt" in methods and "objective" not in found:
        raise document.error(place, "the method tamt needs an objective; add one such as objective: kd:1,attention:1")
    initial = [document.initial((*place, "initial"), name) for name in found.get("initial", [])]
    return {key: found.get(key, [None]) for key in VARIANTS} | ({"initial": initial} if initial else {})


def _texts(document: "_Document", place: Place, found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The corpus and the dev corpus."""
    texts = {key: [document.corpus(name) for name in found.get(key, [])] for key in ("corpus", "dev_corpus")}
    corpus, dev_corpus = texts.values()
    if not corpus and (needing := [method for method in found["methods"] if METHODS[method].needs_text]):
        raise document.error(
            place, f"{needing[0]} needs text to train on; add a corpus: demo, wikitext-103 or text files"
        )
    if corpus and not dev_corpus and corpus[0] not in CORPORA:
        raise document.error(
            (*place, "corpus"), "text files have no dev text of their own; name some in dev_corpus, to measure masks on"
        )
    for key, names in texts.items():
        for name in names:
            if name not in CORPORA and not Path(name).is_file():
                raise document.error((*place, key), f"there is no text file {name}; correct the path")
    return corpus, dev_corpus


def _search_options(
    document: "_Document", place: Place, content: Mapping[str, Any], methods: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The options of the search for each method: the shared ones that it has, and its own."""
    own = {method: options for method, options in content.items() if method in METHODS}
    shared = document.mapping(
        place,
        {key: value for key, value in content.items() if key not in own},
        SEARCH_OPTIONS,
        also_known=list(METHODS),
    )
    if "save_at" in shared and not any(METHODS[method].trains_scores for method in methods):
        raise document.error((*place, "save_at"), "save_at is for mask training and no tamt method is asked for")
    options = {}
    for method in METHODS:
        foreign = set() if METHODS[method].trains_scores else MASK_TRAINING
        if METHODS[method].one_shot:
            foreign = foreign | TRAINING
        chosen = document.mapping((*place, method), own.get(method, {}), SEARCH_OPTIONS)
        for key in sorted(foreign & chosen.keys()):
            text = f"{key} is not for {method}, but for what trains{' a mask' * (key in MASK_TRAINING)}"
            if (key, method) == ("save_at", IMP):
                text += "; IMP saves a mask at every pruning without being asked"
            raise document.error((*place, method, key), text)
        options[method] = {k: v for k, v in {**shared, **chosen}.items() if k not in foreign}
        if method == IMP and IMP in methods and any(steps < STAGES for steps in options[method].get("steps", [])):
            at = (*place, method, "steps") if "steps" in chosen else (*place, "steps")
            raise document.error(at, f"IMP has {STAGES} prunings in its steps; give at least {STAGES}")
    return options


def _task_options(
    document: "_Document", place: Place, found: Mapping[str, Any], data_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """The options of the fine-tuning for each task: the shared ones, and its own."""
    shared = _with_samples(document, (*place, "finetune"), found.get("finetune", {}))
    tasks = {}
    for name, own in found.get("tasks", {}).items():
        at = (*place, "tasks", name)
        own = own or {}
        task = own.get("task", name)
        try:
            find_task(task)
        except UserError as error:
            raise document.error((*at, "task") if "task" in own else at, str(error)) from error
        options = {**shared, **_with_samples(document, at, {k: v for k, v in own.items() if k != "task"}), "task": task}
        if TASKS[task].own_files:
            for key in ("train_file", "dev_file"):
                if key not in options:
                    raise document.error(at, f"{task} reads files of your own; add its {key}")
        elif strange := sorted(OF_FILES & options.keys()):
            raise document.error(at, f"{strange[0]} is for the task classification or regression; {task} knows its own")
        if data_dir is not None and TASKS[task].folder is not None:
            options = {"data_dir": data_dir, **options}
        tasks[name] = options
    return tasks


def _with_samples(document: "_Document", place: Place, content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the fine-tuning, `train_samples` as a list of which None stands for all rows."""
    plain = document.mapping(place, {k: v for k, v in content.items() if k != "train_samples"}, FINETUNE_OPTIONS)
    if "train_samples" not in content:
        return plain
    asked = content["train_samples"]
    at = (*place, "train_samples")
    if asked in (None, []):
        raise document.error(at, "train_samples is empty; give numbers of rows, or all")
    samples = []
    for number, value in enumerate(asked if isinstance(asked, list) else [asked]):
        samples.append(None if value == ALL else document.value((*at, number), value, int))
    document.check_once(at, samples)
    return {**plain, "train_samples": samples}


class _Loader(PlainLoader):
    """The safe loader, which refuses a key that is there twice; YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Document:
    """A YAML file whose values are checked one by one, with the line of each for what is wrong with it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        if not file.is_file():
            raise UserError(f"there is no study {file}; give a YAML file, such as studies/quick.yaml")
        if file.stat().st_size > MAX_YAML:
            raise UserError(f"the study {file} is larger than {MAX_YAML >> 20} MB; give a YAML file")
        try:
            loader = _Loader(file.read_text(encoding="utf-8"))
            root = loader.get_single_node()
            content = loader.construct_document(root) if root else None
        except UnicodeDecodeError as error:
            raise UserError(f"the study {file} is not UTF-8 text (byte {error.start}); convert it") from error
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise UserError(f"{file}{where}: no YAML that can be read ({problem}); correct it") from error
        if root is None or not isinstance(content, dict):
            raise UserError(f"the study {file} holds no keys such as models and methods; see docs/studies.md")
        self._root: yaml.Node = root
        self.content: dict[Any, Any] = content

    def error(self, place: Place, text: str) -> UserError:
        """What is wrong at a place, with its line; the nearest place that is in the file."""
        node, line = self._root, 1
        for key in place if place[:1] != ("also",) or self._is_there(place) else place[2:]:
            found = self._child(node, key)
            if found is None:
                break
            node, line = found
        return UserError(f"{self._file}, line {line}: {text}")

    def mapping(
        self, place: Place, content: Any, kinds: Mapping[str, Any], also_known: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The values of a mapping, each of its key's type; a key without value counts as not there."""
        if not isinstance(content, dict):
            raise self.error(place, f"{_path(place)} holds no keys and values; write key: value lines under it")
        for key in content:
            if key not in kinds:
                known = [*kinds, *also_known]
                hint = did_you_mean(key, known, f"the keys are {', '.join(known)}")
                where = f" in {_path(place)}" if place else ""
                raise self.error((*place, key), f"there is no key {key!r}{where}; {hint}")
        return {
            key: self.value((*place, key), value, kinds[key]) for key, value in content.items() if value is not None
        }

    def value(self, place: Place, value: Any, kind: Any) -> Any:
        """A value as `kind`: a list may be given as its only element, a path relative to the file's folder."""
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
            if value not in choices:
                told = f"{_path(place)} is {value!r}, not one of {', '.join(choices)}"
                raise self.error(place, f"{told}; {_hint(value, choices)}")
            return value
        if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
            with suppress(ValueError):  # YAML takes 5e-5, without a point, for a text
                value = float(value)
        wanted = {
            int: "a whole number" + ("" if _is_seed(place) else " of 1 or more"),
            float: "a number of 0 or more",
            bool: "true or false",
            str: "a text",
            Path: "a path",
            dict: "keys and values",
            list: "a list",
        }[kind]
        right = isinstance(value, str if kind is Path else kind) and not (kind is int and isinstance(value, bool))
        if right and kind is int:
            right = value >= (0 if _is_seed(place) else 1)
        if right and kind is float:
            right = math.isfinite(value) and value >= 0
        if right and kind in {str, Path}:
            right = bool(value.strip())
        if not right:
            raise self.error(place, f"{_path(place)} is {value!r}, not {wanted}; correct it")
        return self._file.resolve().parent / Path(value).expanduser() if kind is Path else value

    def check_once(self, place: Place, values: Sequence[Any]) -> None:
        """Check that a list holds nothing twice."""
        for number, value in enumerate(values):
            if value in values[:number]:
                raise self.error((*place, number), f"{_path(place)} lists {value!r} twice; leave one out")

    def model(self, name: str) -> str:
        """The folder of a model if there is one beside the file or at the absolute path, else its hub name."""
        folder = self._file.resolve().parent / Path(name).expanduser()
        return str(folder.resolve()) if name not in demo.MODELS and folder.is_dir() else name

    def corpus(self, name: str) -> str:
        """A corpus by its name, or the path of a text file."""
        return name if name in CORPORA else str(self._file.resolve().parent / Path(name).expanduser())

    def initial(self, place: Place, name: str) -> str:
        """A mask to start from by its name, or the path of a mask file."""
        if name in MASKS_BY_NAME:
            return name
        path = self._file.resolve().parent / Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(MASKS_BY_NAME)
            raise self.error(place, f"{_path(place)} is {name!r}, not one of {known} and no mask file; correct it")
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
        """The node under a key or a number, and its line."""
        if isinstance(node, yaml.MappingNode):
            for name, child in node.value:
                if name.value == str(key):
                    return child, name.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            if isinstance(key, int) and key < len(node.value):
                child = node.value[key]
                return child, child.start_mark.line + 1
            for child in node.value:  # a name of a list, such as a task
                if child.value == key:
                    return child, child.start_mark.line + 1
        return None


def _path(place: Place) -> str:
    """How a place is called in a message: search.imp.steps[0]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".") or "the study"


def _is_seed(place: Place) -> bool:
    return bool(SEEDS & set(place))


def _hint(value: Any, choices: Sequence[str]) -> str:
    name = str(value).lower()
    if "imp" in name and "kd" in name:
        return "IMP trains the weights on MLM, and KD is an objective of mask training: tamt-kd"
    return did_you_mean(name, choices, "choose one of them")
