"""The tasks to fine-tune on: what each one is, and how its rows are read, from a hub, from files or from the demo."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import datasets
import numpy as np

from tamt.console import say
from tamt.data import demo
from tamt.errors import UserError

Metric = Literal["accuracy"]


@dataclass(frozen=True)
class Task:
    """A classification task, with the settings of the paper's Table 1 as defaults.

    Attributes:
        name: what `--task` calls it.
        text_columns: one column, or two for a pair of sentences.
        label_names: the labels by their ids; a file may hold the name or the id. None: those found in the train file.
        metric: what is reported and chosen by.
        hub: repository and configuration on the hub, with `train` and `validation` splits.
        folder: its folder in GLUE's `glue_data`, with `train.tsv` and `dev.tsv`.
        rows: official numbers of train and dev rows.
        epochs: passes over the train rows.
        eval_every: optimizer steps between two evaluations.
        batch_size: rows a batch.
        max_length: tokens of a row, special tokens counted.
        lr: peak learning rate.
    """

    name: str
    text_columns: tuple[str, ...] = ("sentence",)
    label_column: str = "label"
    label_names: tuple[str, ...] | None = None
    metric: Metric = "accuracy"
    hub: tuple[str, str] | None = None
    folder: str | None = None
    rows: tuple[int, int] | None = None
    epochs: int = 3
    eval_every: int = 50
    batch_size: int = 32
    max_length: int = 128
    lr: float = 2e-5


SENTIMENTS = ("negative", "positive")
TASKS = {
    task.name: task
    for task in (
        Task("sst2", label_names=SENTIMENTS, hub=("nyu-mll/glue", "sst2"), folder="SST-2", rows=(67_349, 872)),
        # lr: the demo's model on 800 snippets, one epoch of batches of 8, scored 0.73, 0.77, 0.73 at 5e-5, 1e-4, 2e-4.
        Task("demo", label_names=SENTIMENTS, eval_every=200, batch_size=16, max_length=64, lr=1e-4),
        Task("classification"),
    )
}
LATER = ("cola", "rte", "mnli", "mrpc", "stsb", "squad")

DEMO_DEV_ROWS = 1000
DEMO_SPLIT_SEED = 0
"""The demo's dev rows are the same whatever the seed of a run, so that runs are compared on the same rows."""


Numbered = tuple[int, Mapping[str, str]]
"""A row of a file by its columns, with the number of its line."""


@dataclass
class Rows:
    """Labelled rows: for each its texts (one or two) and the id of its label."""

    texts: list[tuple[str, ...]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> "Rows":
        """The rows `indices`, in that order."""
        return Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices])


def find_task(name: str) -> Task:
    """The task called `name`. Raises UserError if there is none."""
    if name in TASKS:
        return TASKS[name]
    if name in LATER:
        raise UserError(f"the task {name} is not there yet; the tasks are {', '.join(TASKS)}")
    raise UserError(
        f"there is no task {name!r}; the tasks are {', '.join(TASKS)} (classification is for files of your own)"
    )


def load_rows(
    task: Task,
    data_dir: Path | None = None,
    train_file: Path | None = None,
    dev_file: Path | None = None,
) -> tuple[Task, Rows, Rows]:
    """The train and dev rows of a task.

    Args:
        task: see `find_task`; of "classification" the columns must have been set.
        data_dir: GLUE's `glue_data` folder or the task's folder in it, in place of the hub.
        train_file: `.tsv` (unquoted, as GLUE's), `.csv` or `.jsonl` with the columns of "classification".
        dev_file: the same for its dev rows.

    Returns:
        The task with its label names filled in, the train rows, the dev rows.

    Raises:
        UserError: a file, column or label is missing or wrong, a split is empty, or the hub cannot be reached.
    """
    if task.name == "classification":
        if train_file is None or dev_file is None:
            raise UserError("the task classification reads files of your own; give --train-file and --dev-file")
        if data_dir is not None:
            raise UserError("--data-dir is for GLUE's layout; give --train-file and --dev-file to classification")
        return _load_files(task, train_file, dev_file)
    if train_file is not None or dev_file is not None:
        raise UserError(f"--train-file and --dev-file are for --task classification, not {task.name}; leave them out")
    if task.name == "demo":
        if data_dir is not None:
            raise UserError("the task demo fetches its own rows; leave --data-dir out")
        return _load_demo(task)
    if data_dir is not None:
        folder = _glue_folder(task, data_dir)
        task, train, dev = _load_files(task, folder / "train.tsv", folder / "dev.tsv")
    else:
        task, train, dev = _load_hub(task)
    for split, rows, official in zip(("train", "dev"), (train, dev), task.rows or (), strict=False):
        if len(rows) != official:
            say(f"{task.name} has {len(rows):,} {split} rows here, officially {official:,}")
    return task, train, dev


def subset(rows: Rows, samples: int, seed: int) -> Rows:
    """A seeded random subset of `samples` rows, stratified: every label keeps its share to within one row.

    Raises:
        UserError: there are fewer rows, or fewer samples than labels.
    """
    if samples > len(rows):
        raise UserError(f"--train-samples {samples} is more than the {len(rows)} train rows; lower it or leave it out")
    counts = np.bincount(rows.labels)
    if samples < np.count_nonzero(counts):
        raise UserError(f"--train-samples {samples} is fewer than the {np.count_nonzero(counts)} labels; raise it")
    exact = counts * samples / len(rows)
    quotas = np.floor(exact).astype(int)
    largest_rests = np.argsort(quotas - exact, kind="stable")
    quotas[largest_rests[: samples - quotas.sum()]] += 1
    generator = np.random.default_rng(seed)
    labels = np.array(rows.labels)
    chosen = [
        generator.choice(np.flatnonzero(labels == label), quota, replace=False) for label, quota in enumerate(quotas)
    ]
    return rows.take(sorted(np.concatenate(chosen).tolist()))


def _load_demo(task: Task) -> tuple[Task, Rows, Rows]:
    file = demo.snippets_file()
    rows = _to_rows(task, file, _read_file(file, task))
    order = np.random.default_rng(DEMO_SPLIT_SEED).permutation(len(rows)).tolist()
    return task, rows.take(order[DEMO_DEV_ROWS:]), rows.take(order[:DEMO_DEV_ROWS])


def _load_files(task: Task, train_file: Path, dev_file: Path) -> tuple[Task, Rows, Rows]:
    train, dev = _read_file(train_file, task), _read_file(dev_file, task)
    if task.label_names is None:
        names = {row[task.label_column] for _, row in train}
        numbers = all(name.removeprefix("-").isdecimal() for name in names)
        task = replace(task, label_names=tuple(sorted(names, key=int if numbers else None)))
        if len(names) < 2:
            raise UserError(
                f"{train_file} has only the label {min(names)!r} in its column {task.label_column}; "
                "give a file with two labels or more"
            )
    return task, _to_rows(task, train_file, train), _to_rows(task, dev_file, dev)


def _load_hub(task: Task) -> tuple[Task, Rows, Rows]:
    assert task.hub is not None
    try:
        splits = datasets.load_dataset(*task.hub)
    except Exception as error:  # the hub's client raises nearly anything when it is offline
        raise UserError(
            f"{task.name} could not be fetched from the hub ({type(error).__name__}); go online once, or give "
            f"GLUE's files: --data-dir glue_data, with {task.folder}/train.tsv and {task.folder}/dev.tsv in it"
        ) from error
    rows = []
    for split in ("train", "validation"):
        columns = [splits[split][column] for column in task.text_columns]
        rows.append(Rows(list(zip(*columns, strict=True)), list(splits[split][task.label_column])))
    return task, rows[0], rows[1]


def _glue_folder(task: Task, data_dir: Path) -> Path:
    assert task.folder is not None
    for folder in (data_dir / task.folder, data_dir):
        if (folder / "train.tsv").is_file() and (folder / "dev.tsv").is_file():
            return folder
    raise UserError(
        f"there are no train.tsv and dev.tsv in {data_dir / task.folder} or {data_dir}; "
        "give GLUE's glue_data folder as --data-dir"
    )


def _to_rows(task: Task, file: Path, found: list[Numbered]) -> Rows:
    assert task.label_names is not None
    ids = {name: index for index, name in enumerate(task.label_names)}
    if TASKS[task.name].label_names is not None:  # GLUE's files hold ids for some tasks, names for others
        ids |= {str(index): index for index in range(len(ids))}
    for line, row in found:
        if row[task.label_column] not in ids:
            raise UserError(
                f"{file}, line {line}: the label {row[task.label_column]!r} is none of {', '.join(task.label_names)}; "
                "correct it, or add rows with it to the train file"
            )
    texts = [tuple(row[column] for column in task.text_columns) for _, row in found]
    return Rows(texts, [ids[row[task.label_column]] for _, row in found])


def _read_file(file: Path, task: Task) -> list[Numbered]:
    """The rows of a file, checked to have the columns of `task` and a label each."""
    if file.suffix not in READERS:
        raise UserError(f"{file} is no .tsv, .csv or .jsonl file; name it so, or convert it")
    if not file.is_file():
        raise UserError(f"there is no file {file}; give a .tsv, .csv or .jsonl file with labelled rows")
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; convert the file, with iconv for example") from error
    columns = (*task.text_columns, task.label_column)
    rows = []
    for line, row in READERS[file.suffix](file, text):
        for column in columns:
            if column not in row:
                raise UserError(
                    f"{file}, line {line}: there is no column {column!r} among {', '.join(row)}; "
                    "name the columns with --text-column and --label-column"
                )
        if not row[task.label_column]:
            raise UserError(f"{file}, line {line}: the label is empty; label the row or leave it out")
        rows.append((line, row))
    if not rows:
        raise UserError(f"{file} has no rows; give a file with labelled rows")
    return rows


def _read_tsv(file: Path, text: str) -> Iterator[Numbered]:
    """GLUE's layout: a header, cells between tabs, no quoting at all, so that a lone `"` is text."""
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    yield from _with_header(file, ((number, line.split("\t")) for number, line in lines if line))


def _read_csv(file: Path, text: str) -> Iterator[Numbered]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from _with_header(file, ((reader.line_num, cells) for cells in reader if cells))
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.line_num}: {error}; correct the quoting, or use .tsv or .jsonl"
        ) from error


def _with_header(file: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[Numbered]:
    _, header = next(lines, (0, []))
    for number, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{file}, line {number}: {len(cells)} cells under the {len(header)} of the header; correct the line"
            )
        yield number, dict(zip(header, cells, strict=True))


def _read_jsonl(file: Path, text: str) -> Iterator[Numbered]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: no JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: no JSON object; write one object a line")
        # A number is taken as its digits (labels are often 0 and 1); anything else is no text and no label.
        yield number, {key: str(value) for key, value in row.items() if isinstance(value, str | int)}


READERS: dict[str, Callable[[Path, str], Iterator[Numbered]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
