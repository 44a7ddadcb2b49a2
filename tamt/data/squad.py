"""SQuAD v1.1 and v2.0: questions, each with a text that may contain the answer, from JSON files or the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamt.data.glue import fetch, hub_split, report_counts
from tamt.data.rows import is_half, read_text
from tamt.data.tasks import Task
from tamt.runtime.console import say
from tamt.runtime.errors import UserError

REMEDY = "give a file in the layout of SQuAD"


@dataclass
class Question:
    """A question and its correct answers, which are spans of the context.

    Attributes:
        id: SQuAD's id.
        question: the text of the question.
        context: the text that contains the answers.
        answers: the correct answers; train questions have one. Empty if the context has none, as in SQuAD v2.0, or if
            the file does not give them.
        starts: the position of each answer in the context, in characters.
    """

    id: str
    question: str
    context: str
    answers: list[str]
    starts: list[int]


def load_questions(task: Task, data_dir: Path | None = None) -> dict[str, list[Question]]:
    """The questions of SQuAD by split, train and dev.

    Args:
        task: SQuAD v1.1 or v2.0.
        data_dir: folder with `train-v1.1.json` and `dev-v1.1.json` (or `v2.0`), or one other `train*.json` and
            `dev*.json`, instead of the hub.

    Raises:
        UserError: a file is missing or not in SQuAD's layout, an answer is not at its offset, or the hub cannot be
            reached.
    """
    if data_dir is None:
        splits = _fetch(task)
    else:
        files = {split: question_file(task, data_dir, split) for split in task.splits}
        for split, file in files.items():
            say(f"{task.name} takes its {split} questions from {file}")
        splits = {split: read_questions(file, task)[0] for split, file in files.items()}
    report_counts(task, {split: len(questions) for split, questions in splits.items()})
    return splits


def _official(task: Task, split: str) -> str:
    return f"{split}-v{'2.0' if task.unanswerable else '1.1'}.json"


def question_file(task: Task, data_dir: Path, split: str) -> Path:
    """The file with the questions of a split, see `load_questions`. Raises UserError if there is not one."""
    official = data_dir / _official(task, split)
    found = [official] if official.is_file() else sorted(data_dir.glob(f"{split}*.json"))
    if len(found) != 1:
        what = "is no" if not found else f"are {len(found)} ({', '.join(file.name for file in found)}) but no"
        raise UserError(f"in {data_dir} there {what} {official.name}; give the folder with SQuAD's files as --data-dir")
    return found[0]


def _fetch(task: Task) -> dict[str, list[Question]]:
    wanted = " and ".join(_official(task, split) for split in task.splits)
    fetched = fetch(task, f"SQuAD's files: --data-dir FOLDER, with {wanted} in it")
    return {
        split: [
            _question(
                task,
                f"{'/'.join(task.hub or ())}, {split}[{number}]",
                row,
                row["context"],
                row["answers"]["text"],
                row["answers"]["answer_start"],
            )
            for number, row in enumerate(fetched[hub_split(split)])
        ]
        for split in task.splits
    }


def read_questions(file: Path, task: Task, need_answers: bool = True) -> tuple[list[Question], bool]:
    """The questions of a file in SQuAD's layout, and whether it gives their answers.

    Args:
        file: JSON.
        task: SQuAD v1.1, where every question has an answer, or v2.0.
        need_answers: whether a file without any answers, such as a test set, is an error.

    Raises:
        UserError: the file is missing or not in SQuAD's layout, or an answer is missing or not at its offset.
    """
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}); {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); {REMEDY}") from error
    rows = []
    for i, article in enumerate(_get(file, "the file", content, "data", list)):
        for j, paragraph in enumerate(_get(file, f"data[{i}]", article, "paragraphs", list)):
            at = f"data[{i}].paragraphs[{j}]"
            context = _get(file, at, paragraph, "context", str)
            for k, row in enumerate(_get(file, at, paragraph, "qas", list)):
                rows.append((f"{at}.qas[{k}]", context, row))
    if not rows:
        raise UserError(f"{file} has no questions; {REMEDY}")
    given = [isinstance(row, dict) and (row.get("answers") or row.get("is_impossible")) for _, _, row in rows]
    answered = need_answers or any(given)
    questions = []
    for at, context, row in rows:
        answers = _get(file, at, row, "answers", list) if answered else []
        texts = [_get(file, f"{at}.answers[{n}]", answer, "text", str) for n, answer in enumerate(answers)]
        starts = [_get(file, f"{at}.answers[{n}]", answer, "answer_start", int) for n, answer in enumerate(answers)]
        named = {key: _get(file, at, row, key, str) for key in ("id", "question")}
        if answered:
            questions.append(_question(task, f"{file}, {at}", named, context, texts, starts))
        else:
            questions.append(Question(**named, context=context, answers=[], starts=[]))
    return questions, answered


def _get(file: Path, at: str, value: Any, key: str, kind: type) -> Any:
    """`value[key]`; a number becomes text if `kind` is str.

    Raises:
        UserError: it is missing or of another type; the message names the place.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if kind is str and type(found) in (int, float):  # such as an id
        found = str(found)
    if not isinstance(found, kind):
        name = {list: "list", str: "text", int: "number"}[kind]
        raise UserError(f"{file}, {at}: there is no {name} {key!r}; {REMEDY}")
    if isinstance(found, str) and is_half(found):
        raise UserError(f"{file}, {at}: {key!r} holds half a character; correct its \\u escapes")
    return found


def _question(task: Task, at: str, row: Any, context: str, answers: list[str], starts: list[int]) -> Question:
    if not answers and not task.unanswerable:
        raise UserError(
            f"{at}: the question has no answer, as in SQuAD v2.0; choose --task squad2, or give v1.1 or leave it out"
        )
    for number, (answer, start) in enumerate(zip(answers, starts, strict=True)):
        if not answer or start < 0 or context[start : start + len(answer)] != answer:
            raise UserError(
                f"{at}.answers[{number}]: the answer {answer!r} is not at character {start} of its context; correct "
                "answer_start, which counts characters and not bytes"
            )
    return Question(row["id"], row["question"], context, list(answers), list(starts))
