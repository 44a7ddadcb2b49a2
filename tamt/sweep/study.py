"""The study file: what a sweep runs, checked key by key before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from tamt.data.tasks import TASKS, find_task
from tamt.methods import IMP, METHODS, STAGES, MethodName, last_step, variant_options
from tamt.options.base import Options
from tamt.options.bench import BenchOptions
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import OF_MASK_TRAINING, OF_TRAINING, TrainOptions
from tamt.runtime.choices import Drop, Scope, Scores, share_pruned
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure
from tamt.sweep.document import CORPORA, Place, StudyDocument
from tamt.terms import parse_objective

ALL = "all"
"""The value of `train_samples` that stands for all rows."""


def options_of(kind: type[Options], *without: str) -> dict[str, Any]:
    """The options of a command by name, with their types, without those that other keys of a study set."""
    left_out = {*without, "model", "output", "seed", "resume"}
    return {field.name: field.type for field in fields(kind) if field.name not in left_out}


VARIANTS = variant_options()
"""Options of the search that a study lists; each value is a separate search."""
SEARCH_OPTIONS = options_of(
    TrainOptions, "method", "corpus", "dev_corpus", "sparsity", "pattern", "structure", *VARIANTS
) | {"steps": list[int]}
FINETUNE_OPTIONS = options_of(FinetuneOptions, "task", "mask", "seeds")
BENCH_OPTIONS = options_of(BenchOptions, "mask", "sparsity")
MASK_KEYS = {
    **{key: key for key in ("corpus", "dev_corpus", *VARIANTS)},
    "method": "methods",
    "sparsity": "sparsities",
    "pattern": "patterns",
    "structure": "structures",
    "model": "models",
    "seed": "mask_seeds",
    "seeds": "mask_seeds",
}
"""Options of a search and of `tamt bench` that a study gives by keys of its own."""
FINETUNE_KEYS = {"task": "tasks", "model": "models", "seed": "finetune_seeds", "seeds": "finetune_seeds"}
"""The same of the fine-tuning."""
SEED_KEYS = dict.fromkeys(("seed", "seeds"), "mask_seeds or finetune_seeds")
"""The keys of a study that `seed` and `seeds` may stand for."""
MASK_TRAINING = {"objective", "initial", "scores", "save_at", *OF_MASK_TRAINING}
"""Options of the search that only mask training has."""
TRAINING = {"steps", "log_every", "eval_every", "save_every", *OF_TRAINING}
"""Options of the search that one-shot methods do not have."""
OF_FILES = {"train_file", "dev_file", "text_column", "label_column"}
"""Options for the tasks with your own files."""

KEYS: dict[str, Any] = {
    "models": list[str],
    "methods": list[MethodName],
    "sparsities": list[float],
    "patterns": list[str],
    "structures": list[str],
    "mask_seeds": list[int],
    "initial": list[str],
    "objective": list[str],
    "scores": list[Scores],
    "scope": list[Scope],
    "drop": list[Drop],
    "corpus": list[str],
    "dev_corpus": list[str],
    "search": dict,
    "tasks": dict,
    "finetune": dict,
    "finetune_seeds": list[int],
    "data_dir": Path,
    "full_model": bool,
    "bench": dict,
}
"""The keys of a study, with their types, that `also` can change."""
WHOLE_STUDY: dict[str, Any] = {"output": Path, "keep_models": bool, "also": list}


@dataclass(frozen=True)
class Amount:
    """How much a search prunes: the share of zeros, and the pattern or the structure if it has one."""

    sparsity: float
    pattern: str | None = None
    structure: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of `tamt train` that ask for it."""
        return {name: value for name, value in vars(self).items() if value is not None}


AMOUNT = tuple(field.name for field in fields(Amount))


@dataclass(frozen=True)
class Part:
    """One grid of a study: every combination of the listed values. docs/studies.md describes the keys.

    Attributes:
        variants: the values of each of `VARIANTS`; None is the default.
        search: the options of `tamt train` for each method; `steps` and `save_at` are lists.
        tasks: the options of `tamt finetune` by the name of each task; `train_samples` is a list of int, or of None for
            all rows, and `lr` is a list.
        bench: the options of `tamt bench`; None if no time is measured.
    """

    models: list[str]
    methods: list[str]
    amounts: list[Amount]
    mask_seeds: list[int]
    variants: dict[str, list[Any]]
    corpus: list[str]
    dev_corpus: list[str]
    search: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    finetune_seeds: list[int]
    full_model: bool
    bench: dict[str, Any] | None


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
        output: replaces the file's `output`.
        data_dir: replaces the file's `data_dir`.

    Raises:
        UserError: the file is missing or not YAML; a key is unknown, duplicate, missing or of the wrong type; settings
            contradict each other. The message names the line.
    """
    document = StudyDocument(file)
    whole = document.mapping((), document.content, KEYS | WHOLE_STUDY, of_study=SEED_KEYS)
    folder = output or whole.get("output") or file.parent / file.stem
    if folder.is_file():
        raise UserError(f"the output {folder} is a file; give a folder")
    base = {key: value for key, value in document.content.items() if key not in WHOLE_STUDY}
    parts = [_part(document, (), base, data_dir)]
    for number, replaced in enumerate(whole.get("also", [])):
        document.mapping(("also", number), replaced, KEYS, of_study=SEED_KEYS)
        parts.append(_part(document, ("also", number), {**base, **replaced}, data_dir))
    return Study(file, folder.resolve(), whole.get("keep_models", False), parts)


def _part(document: StudyDocument, place: Place, content: Mapping[str, Any], data_dir: Path | None) -> Part:
    """Check one grid. Errors in values that a part inherits name their line in the study."""
    found = document.mapping(place, content, KEYS)
    for key in ("models", "methods", "sparsities"):
        if key not in found and not (key == "sparsities" and {"patterns", "structures"} & found.keys()):
            needed = "a study needs models, methods, and sparsities, patterns or structures"
            raise document.error(place, f"the key {key} is missing; {needed}")
    variants = _variants(document, place, found)
    corpus, dev_corpus = _texts(document, place, found)
    search = _search_options(document, (*place, "search"), found.get("search", {}), found["methods"])
    amounts = _amounts(document, place, found)
    _check_save_at(document, place, found, amounts, search)
    data_dir = data_dir or found.get("data_dir")
    if data_dir is not None and not data_dir.is_dir():
        raise document.error((*place, "data_dir"), f"there is no folder {data_dir}; correct the path")
    return Part(
        models=[document.model((*place, "models", number), name) for number, name in enumerate(found["models"])],
        methods=found["methods"],
        amounts=amounts,
        mask_seeds=found.get("mask_seeds", [0]),
        variants=variants,
        corpus=corpus,
        dev_corpus=dev_corpus,
        search=search,
        tasks=_task_options(document, place, found, data_dir and data_dir.resolve()),
        finetune_seeds=found.get("finetune_seeds", [0]),
        full_model=found.get("full_model", True),
        bench=document.mapping((*place, "bench"), found["bench"], BENCH_OPTIONS, of_study=MASK_KEYS)
        if "bench" in found
        else None,
    )


def _amounts(document: StudyDocument, place: Place, found: Mapping[str, Any]) -> list[Amount]:
    """The sparsities, then the patterns, then the structures."""
    amounts = []
    for number, sparsity in enumerate(found.get("sparsities", [])):
        if not 0 < sparsity < 1:
            at = (*place, "sparsities", number)
            raise document.error(at, f"the sparsity {sparsity:g} is not between 0 and 1; give 0.7 for 70 % zeros")
        amounts.append(Amount(sparsity))
    patterns, structures = (enumerate(found.get(key, [])) for key in ("patterns", "structures"))
    amounts += [_pattern(document, (*place, "patterns", number), pattern) for number, pattern in patterns]
    for number, structure in structures:
        amounts.append(_structure(document, (*place, "structures", number), structure, found["methods"]))
    return amounts


def _pattern(document: StudyDocument, place: Place, pattern: str) -> Amount:
    try:
        return Amount(share_pruned(pattern), pattern)
    except UserError as error:
        raise document.error(place, str(error)) from error


def _structure(document: StudyDocument, place: Place, structure: str, methods: Sequence[str]) -> Amount:
    """What a structure prunes. Each method of the part must be able to."""
    try:
        parsed = Structure.parse(structure)
    except UserError as error:
        raise document.error(place, str(error)) from error
    for method in methods:
        if not METHODS[method].can_prune(parsed.kinds):
            raise document.error(
                place, f"{method} cannot prune the structure {structure}; list it in a part without it"
            )
    return Amount(parsed.most, structure=str(parsed))


def _variants(document: StudyDocument, place: Place, found: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each of `VARIANTS`. At least one method of the part must have each option that is given."""
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


def _texts(document: StudyDocument, place: Place, found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The corpus and the dev corpus."""
    texts = {
        key: [document.corpus((*place, key), name) for name in found.get(key, [])] for key in ("corpus", "dev_corpus")
    }
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
    document: StudyDocument, place: Place, content: Mapping[str, Any], methods: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The options of the search for each method: its own, and the shared ones that apply to it."""
    own = {method: options for method, options in content.items() if method in METHODS}
    shared = document.mapping(
        place,
        {key: value for key, value in content.items() if key not in own},
        SEARCH_OPTIONS,
        also_known=list(METHODS),
        of_study=MASK_KEYS,
    )
    if "save_at" in shared and not any(METHODS[method].trains_scores for method in methods):
        raise document.error((*place, "save_at"), "save_at is for mask training and no tamt method is asked for")
    options = {}
    for method in METHODS:
        foreign = set() if METHODS[method].trains_scores else MASK_TRAINING
        if METHODS[method].one_shot:
            foreign = foreign | TRAINING
        chosen = document.mapping((*place, method), own.get(method, {}), SEARCH_OPTIONS, of_study=MASK_KEYS)
        for key in sorted(foreign & chosen.keys()):
            text = f"{key} is not for {method}, but for what trains{' a mask' * (key in MASK_TRAINING)}"
            if (key, method) == ("save_at", IMP):
                text += "; IMP saves a mask at every pruning anyway"
            raise document.error((*place, method, key), text)
        options[method] = {k: v for k, v in {**shared, **chosen}.items() if k not in foreign}
        if method == IMP and IMP in methods and any(steps < STAGES for steps in options[method].get("steps", [])):
            at = (*place, method, "steps") if "steps" in chosen else (*place, "steps")
            raise document.error(at, f"IMP has {STAGES} prunings in its steps; give at least {STAGES}")
    return options


def _check_save_at(
    document: StudyDocument,
    place: Place,
    found: Mapping[str, Any],
    amounts: Sequence[Amount],
    search: Mapping[str, Mapping[str, Any]],
) -> None:
    """Check that a search reaches each step of `save_at`; where lengths differ, the longest one counts."""
    for method in found["methods"]:
        options = search[method]
        lengths = product(amounts, options.get("steps", [None]))
        last = max(last_step(method, amount.sparsity, steps) for amount, steps in lengths)
        for step in options.get("save_at", []):
            if step > last:
                own = [method] * ("save_at" in (found["search"].get(method) or {}))
                text = f"save_at {step} is after the last step of {method}, {last}; give earlier steps"
                raise document.error((*place, "search", *own, "save_at"), text)


def _task_options(
    document: StudyDocument, place: Place, found: Mapping[str, Any], data_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """The options of the fine-tuning for each task: the shared ones and its own."""
    shared = _with_samples(document, (*place, "finetune"), found.get("finetune", {}))
    tasks = {}
    for name, own in found.get("tasks", {}).items():
        at = (*place, "tasks", name)
        own = {} if own is None else document.value(at, own, dict)
        if not isinstance(name, str):
            raise document.error(at, f"the name {name!r} in tasks is not a text; put it in quotes")
        task = name if own.get("task") is None else document.value((*at, "task"), own["task"], str)
        try:
            find_task(task)
        except UserError as error:
            raise document.error((*at, "task") if "task" in own else at, str(error)) from error
        options = {**shared, **_with_samples(document, at, {k: v for k, v in own.items() if k != "task"}), "task": task}
        if TASKS[task].own_files:
            for key in ("train_file", "dev_file"):
                if key not in options:
                    raise document.error(at, f"{task} reads your own files; add its {key}")
        elif strange := sorted(OF_FILES & options.keys()):
            raise document.error(at, f"{strange[0]} is for the task classification or regression; {task} knows its own")
        if data_dir is not None and TASKS[task].folder is not None:
            options = {"data_dir": data_dir, **options}
        tasks[name] = options
    return tasks


def _with_samples(document: StudyDocument, place: Place, content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the fine-tuning, with `train_samples` as a list, where None stands for all rows."""
    others = {key: value for key, value in content.items() if key != "train_samples"}
    plain = document.mapping(place, others, FINETUNE_OPTIONS, of_study=FINETUNE_KEYS)
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
