"""Rows of sentences and pairs: reading them from files, and seeded subsets."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

import numpy as np

from tamt.data.tasks import Task
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import check_pulled

LARGEST_SCORE = 1e12
"""Largest score of a regression; its square times the scale of a loss stays far below float32's maximum, 3e38."""
LONGEST_CELL = (1 << 31) - 1
"""Most characters in a cell of a .csv file that Python's reader can count."""

Numbered = tuple[int, Mapping[str, Any]]
"""The number of a line in a file, and its row by column. The columns of the task hold text."""


@dataclass
class Rows:
    """The texts of each row (one or two) and its label, an id or a number; `labels` is empty if rows have none."""

    texts: list[tuple[str, ...]]
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Rows":
        """The rows `indices`, in that order."""
        return Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices])


def subset(labels: Sequence[float] | None, rows: int, samples: int, seed: int) -> list[int]:
    """A seeded random subset of `samples` of `rows` rows, as sorted indices.

    Args:
        labels: label ids to stratify by: every label keeps its share to within one row, and has one at least. None: not
            stratified.
        rows: number of rows.
        samples: number of rows to choose.
        seed: seed of the choice.

    Raises:
        UserError: there are fewer rows, or fewer samples than labels.
    """
    if samples > rows:
        raise UserError(f"--train-samples {samples} is more than the {rows} train rows; lower it or leave it out")
    generator = np.random.default_rng(seed)
    if labels is None:
        return sorted(generator.choice(rows, samples, replace=False).tolist())
    counts = np.bincount(labels)
    if samples < np.count_nonzero(counts):
        raise UserError(f"--train-samples {samples} is fewer than the {np.count_nonzero(counts)} labels; raise it")
    exact = counts * samples / rows
    quotas = np.floor(exact).astype(int)
    largest_rests = np.argsort(quotas - exact, kind="stable")
    quotas[largest_rests[: samples - quotas.sum()]] += 1
    while (lacking := (quotas == 0) & (counts > 0)).any():  # a label that is not there cannot be learnt
        quotas[np.argmax(lacking)], quotas[np.argmax(quotas)] = 1, quotas.max() - 1
    chosen = [
        generator.choice(np.flatnonzero(np.array(labels) == label), quota, replace=False)
        for label, quota in enumerate(quotas)
    ]
    return sorted(np.concatenate(chosen).tolist())


def are_labelled(task: Task, found: Sequence[Numbered]) -> bool:
    """Whether any row has a label; those of GLUE's test sets have none."""
    return any(row.get(task.label_column) for _, row in found)


def to_rows(
    task: Task, file: Path, found: Sequence[Numbered], remedy: str = "add rows with it to the train file"
) -> Rows:
    """Rows of a file with their labels, if they have any, as ids or numbers.

    Raises:
        UserError: a label is unknown, with `remedy` for a label that is right, or a score is out of range.
    """
    ids = {name: index for index, name in enumerate(task.label_names or ())}
    if task.folder or task.name == "demo":  # GLUE's files hold ids for some tasks, names for others
        ids |= {str(index): index for index in range(len(ids))}
    labels: list[float] = []
    for line, row in found if are_labelled(task, found) else ():
        label = row[task.label_column]
        if task.kind == "regression":
            labels.append(_number(file, line, label, task.scale))
        elif label in ids:
            labels.append(ids[label])
        else:
            raise UserError(
                f"{file}, line {line}: the label {label!r} is not one of {', '.join(task.label_names or ())}; "
                f"correct it, or {remedy}"
            )
    return Rows([tuple(row[column] for column in task.text_columns) for _, row in found], labels)


def _number(file: Path, line: int, label: str, scale: tuple[float, float] | None) -> float:
    lowest, highest = scale or (-LARGEST_SCORE, LARGEST_SCORE)
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if not lowest <= number <= highest:
        remedy = "correct it" if scale else "correct it, or divide all scores by a constant"
        raise UserError(
            f"{file}, line {line}: the score {label!r} is not a number from {lowest:g} to {highest:g}; {remedy}"
        )
    return number


def read_file(file: Path, task: Task, need_labels: bool = True) -> list[Numbered]:
    """The rows of a file; each has the columns of `task` and a label.

    Args:
        file: `.tsv`, unquoted like GLUE's (MRPC's `.txt` too), `.csv` or `.jsonl`.
        task: names the columns, or all columns in order if the file has no header.
        need_labels: whether a file without labels, such as GLUE's test sets, is an error.

    Raises:
        UserError: the file is missing, not UTF-8, has no rows, or a row lacks a column or its label.
    """
    check_file(file, task)
    rows = list(READERS[file.suffix](file, read_text(file), task))
    if not rows:
        raise UserError(f"{file} has no rows; give a file with rows")
    labelled = need_labels or are_labelled(task, rows)
    columns = (*task.text_columns, task.label_column) if labelled else task.text_columns
    for line, row in rows:
        for column in columns:
            if column not in row:
                remedy = (
                    f"give the file of GLUE's {task.folder}"
                    if task.folder
                    else "name the columns with --text-column and --label-column"
                )
                raise UserError(f"{file}, line {line}: there is no column {column!r} among {', '.join(row)}; {remedy}")
            if not isinstance(row[column], str):
                what = "null" if row[column] is None else "a list" if isinstance(row[column], list) else "an object"
                raise UserError(f"{file}, line {line}: {column!r} is {what}, not text; write it as text or a number")
            if is_half(row[column]):
                raise UserError(f"{file}, line {line}: {column!r} holds half a character; correct its \\u escapes")
        if labelled and not row[task.label_column]:
            raise UserError(f"{file}, line {line}: the label is empty; label the row or leave it out")
    return rows


def is_half(text: str) -> bool:
    """Whether a text contains half of a surrogate pair, which JSON allows but no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_file(file: Path, task: Task) -> None:
    """Check that a file is there and of a kind that `read_file` reads. Raises UserError if not."""
    if file.suffix not in READERS or (file.suffix == ".txt" and not task.folder):
        raise UserError(f"{file} is not a .tsv, .csv or .jsonl file; rename or convert it")
    _check_there(file)


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"there is no file {file}; give one with rows")


def read_text(file: Path) -> str:
    """The text of a UTF-8 file without a byte order mark. Raises UserError, naming the line, if it is not UTF-8."""
    _check_there(file)
    check_pulled(file)
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; convert the file, with iconv for example") from error


def _read_tsv(file: Path, text: str, task: Task) -> Iterator[Numbered]:
    """GLUE's layout: cells between tabs without quoting, so that a single `"` is text.

    Empty lines are left out. With one column they are rows without text, but for those at the end.
    """
    lines = enumerate((line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")), start=1)
    filled = dropwhile(lambda numbered: not numbered[1], lines)
    one_column = "\t" not in text.lstrip("\r\n").partition("\n")[0]
    yield from _by_columns(file, ((number, line.split("\t")) for number, line in filled if line or one_column), task)


def _read_csv(file: Path, text: str, task: Task) -> Iterator[Numbered]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(
        min(max(len(text), 1), LONGEST_CELL)
    )  # Python's default of 131,072 is too small for long texts
    try:
        yield from _by_columns(file, ((reader.line_num, cells) for cells in reader if cells), task)
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.line_num}: {error}; correct the quoting, or use .tsv or .jsonl"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _by_columns(file: Path, lines: Iterator[tuple[int, list[str]]], task: Task) -> Iterator[Numbered]:
    first = next(lines, None)
    if first is None:
        return
    columns: Sequence[str] = first[1]
    if twice := next((name for name in (*task.text_columns, task.label_column) if columns.count(name) > 1), None):
        raise UserError(f"{file}: the column {twice!r} is there twice; rename or delete one of them")
    if task.header is not None and not set(task.text_columns) <= set(columns):  # only CoLA's test set has a header
        columns, lines = task.header, chain([first], lines)
    broken = []
    for number, cells in lines:
        if len(cells) != len(columns) and task.broken_lines:
            broken.append(number)
            continue
        if len(cells) != len(columns):
            whose = f"the layout ({', '.join(columns)})" if columns == task.header else "the header"
            raise UserError(
                f"{file}, line {number}: {len(cells)} cells under the {len(columns)} of {whose}; correct the line"
            )
        yield number, dict(zip(columns, cells, strict=True))
    if broken:
        say(f"{len(broken):,} lines of {file} are broken and left out, line {broken[0]} the first")


def _read_jsonl(file: Path, text: str, _: Task) -> Iterator[Numbered]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object; write one object per line")
        yield number, {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> Any:
    """Numbers become text, as in a .csv file: labels are often 0 and 1. NaN is what pandas writes for no value."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float) else value


READERS: dict[str, Callable[[Path, str, Task], Iterator[Numbered]]] = {
    ".tsv": _read_tsv,
    ".txt": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
