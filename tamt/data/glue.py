"""Rows of sentences and pairs: GLUE's tasks from files or the hub, the demo's tasks, and your own files."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tamt.data import assets as demo
from tamt.data.rows import Numbered, Rows, check_file, read_file, to_rows
from tamt.data.tasks import Task
from tamt.runtime.console import say
from tamt.runtime.errors import UserError

if TYPE_CHECKING:
    import datasets

DEMO_FILES: dict[str, Callable[[], Path]] = {
    "demo": lambda: demo.snippets_file(),
    "questions": lambda: demo.questions_file(),
}
"""The files of the tasks that come from the package index."""
DEMO_DEV_ROWS = 1000
DEMO_SPLIT_SEED = 0
"""Fixed, so that runs with different seeds are compared on the same dev rows."""

NOT_LEARNED = "take a model that was fine-tuned with rows of it"
"""Remedy for a label that a fine-tuned model does not know."""
LABELS_SHOWN = 10
"""Most labels of your own files that are printed."""
MRPC_TRAIN = "msr_paraphrase_train.txt"
"""MRPC's train and dev rows together, as Microsoft publishes them; GLUE's dev.tsv lists the dev rows among them."""
MRPC_IDS = ("#1 ID", "#2 ID")


def load_rows(
    task: Task,
    data_dir: Path | None = None,
    train_file: Path | None = None,
    dev_file: Path | None = None,
) -> tuple[Task, dict[str, Rows]]:
    """The rows of a task by split: train first, then the dev set; MNLI has two.

    Args:
        task: the task; for your own files with its columns set.
        data_dir: GLUE's `glue_data` folder or the task's folder in it, instead of the hub.
        train_file: `.tsv` (unquoted, like GLUE's), `.csv` or `.jsonl` with the columns of the task.
        dev_file: the same for the dev rows.

    Returns:
        The task with its label names filled in, and the rows.

    Raises:
        UserError: a file, column or label is missing or wrong, a split is empty, or the hub cannot be reached.
    """
    check_files(task, data_dir, train_file, dev_file)
    if train_file is not None and dev_file is not None:
        return _load_own(task, train_file, dev_file)
    if task.name in DEMO_FILES:
        return task, _load_demo(task)
    splits = _load_glue(task, data_dir) if data_dir is not None else _load_hub(task)
    report_counts(task, {split: len(rows) for split, rows in splits.items()})
    return task, splits


def check_files(task: Task, data_dir: Path | None, train_file: Path | None, dev_file: Path | None) -> None:
    """Check that the files are those that a task reads, and that they are there; see `load_rows`.

    Raises:
        UserError: a file is missing, not given, or not for this task.
    """
    if task.own_files:
        if train_file is None or dev_file is None:
            raise UserError(f"the task {task.name} reads your own files; give --train-file and --dev-file")
        if data_dir is not None:
            raise UserError(f"--data-dir is for GLUE's layout; give --train-file and --dev-file to {task.name}")
        for file in (train_file, dev_file):
            check_file(file, task)
        return
    if train_file is not None or dev_file is not None:
        raise UserError(
            f"--train-file and --dev-file are for --task classification or regression, not {task.name}; leave them out"
        )
    if task.name in DEMO_FILES and data_dir is not None:
        raise UserError(f"the task {task.name} fetches its own rows; leave --data-dir out")
    if data_dir is not None:
        _glue_files(task, data_dir)


def load_dev_rows(task: Task, data_dir: Path | None = None, dev_file: Path | None = None) -> dict[str, Rows]:
    """The rows of a task's dev sets without its train rows.

    Args:
        task: see `load_rows`; a classification with your own files must have its label names.
        data_dir: see `load_rows`.
        dev_file: see `load_rows`.

    Raises:
        UserError: see `load_rows`.
    """
    if task.own_files:
        if dev_file is None or data_dir is not None:
            raise UserError(f"the task {task.name} reads your own file; give --dev-file, and no --data-dir")
        return {"dev": to_rows(task, dev_file, read_file(dev_file, task), NOT_LEARNED)}
    _, rows = load_rows(task.held_out, data_dir, None, dev_file)
    return {split: found for split, found in rows.items() if split != "train"}


def report_counts(task: Task, counts: dict[str, int]) -> None:
    """Report the splits whose numbers of rows are not the official ones."""
    for split, count in counts.items():
        if count != task.splits[split]:
            say(f"{task.name} has {count:,} {split} rows here, officially {task.splits[split]:,}")


def fetch(task: Task, instead: str) -> "datasets.DatasetDict":
    """The splits of a task on the hub. Raises UserError, with the alternative `instead`, if it cannot be reached."""
    import datasets  # not above: fine-tuning must work without it

    assert task.hub is not None
    try:
        return datasets.load_dataset(*task.hub)
    except Exception as error:  # the hub's client raises almost anything when it is offline
        raise UserError(
            f"{task.name} could not be fetched from the hub ({type(error).__name__}); go online once, or give {instead}"
        ) from error


def hub_split(split: str) -> str:
    """The hub's name of a split: `validation_matched` for `dev_matched`."""
    return split.replace("dev", "validation")


def _load_demo(task: Task) -> dict[str, Rows]:
    file = DEMO_FILES[task.name]()
    rows = to_rows(task, file, read_file(file, task))
    order = np.random.default_rng(DEMO_SPLIT_SEED).permutation(len(rows)).tolist()
    return {"train": rows.take(order[DEMO_DEV_ROWS:]), "dev": rows.take(order[:DEMO_DEV_ROWS])}


def _load_own(task: Task, train_file: Path, dev_file: Path) -> tuple[Task, dict[str, Rows]]:
    train, dev = read_file(train_file, task), read_file(dev_file, task)
    if task.kind == "regression":
        return task, {"train": to_rows(task, train_file, train), "dev": to_rows(task, dev_file, dev)}
    names = {row[task.label_column] for _, row in train}
    numbers = all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in names)
    task = replace(task, label_names=tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None)))
    if len(names) < 2:
        raise UserError(
            f"{train_file} has only the label {min(names)!r} in its column {task.label_column}; "
            "give a file with two labels or more"
        )
    return task, {"train": to_rows(task, train_file, train), "dev": to_rows(task, dev_file, dev)}


def labels_found(task: Task, train: Rows) -> str:
    """One line with the labels of your own train rows and the number of rows of each."""
    names = task.label_names or ()
    counts = Counter(train.labels)
    shown = ", ".join(f"{name!r} ({counts[label]:,} rows)" for label, name in enumerate(names[:LABELS_SHOWN]))
    more = f" and {len(names) - LABELS_SHOWN:,} more" if len(names) > LABELS_SHOWN else ""
    hint = "; to predict numbers, use --task regression" if more and _are_numbers(names) else ""
    return f"{len(names):,} labels: {shown}{more}{hint}"


def _are_numbers(names: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(name)) for name in names)
    except ValueError:
        return False


def _load_glue(task: Task, data_dir: Path) -> dict[str, Rows]:
    files = _glue_files(task, data_dir)
    found = {split: read_file(file, task) for split, file in files.items()}
    if "train" in files and files["train"].name == MRPC_TRAIN:
        found["train"] = _without_dev_rows(files["train"], found["train"], found["dev"])
    return {split: to_rows(task, file, found[split]) for split, file in files.items()}


def _glue_files(task: Task, data_dir: Path) -> dict[str, Path]:
    assert task.folder is not None
    names = {split: f"{split}.tsv" for split in task.splits}
    candidates = [names, {**names, "train": MRPC_TRAIN}] if task.name == "mrpc" and "train" in names else [names]
    for folder in (data_dir / task.folder, data_dir):
        for candidate in candidates:
            files = {split: folder / name for split, name in candidate.items()}
            if all(file.is_file() for file in files.values()):
                return files
    wanted = ", ".join(names.values())
    raise UserError(
        f"there are no {wanted} in {data_dir / task.folder} or {data_dir}; give GLUE's glue_data folder as --data-dir"
    )


def _without_dev_rows(file: Path, train: Sequence[Numbered], dev: Sequence[Numbered]) -> list[Numbered]:
    try:
        held_out = {tuple(row[column] for column in MRPC_IDS) for _, row in dev}
        kept = [(line, row) for line, row in train if tuple(row[column] for column in MRPC_IDS) not in held_out]
    except KeyError as error:
        raise UserError(
            f"{file} or the dev.tsv beside it has no column {error}, by which its dev rows are left out of training; "
            "give GLUE's MRPC files"
        ) from error
    if len(kept) < len(train):
        say(f"{len(train) - len(kept):,} of the {len(train):,} rows of {file} are in dev.tsv and are not trained on")
    if not kept:
        raise UserError(f"{file} has no rows that are not in dev.tsv; give GLUE's MRPC files")
    return kept


def _load_hub(task: Task) -> dict[str, Rows]:
    wanted = " and ".join(f"{task.folder}/{split}.tsv" for split in task.splits)
    fetched = fetch(task, f"GLUE's files: --data-dir glue_data, with {wanted} in it")
    *texts, label = task.hub_columns or (*task.text_columns, task.label_column)
    splits = {}
    for split in task.splits:
        found = fetched[hub_split(split)]
        splits[split] = Rows(list(zip(*(found[column] for column in texts), strict=True)), list(found[label]))
    return splits
