"""SQuAD v1.1: questions with the text that holds their answer, from its JSON files or the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamt.console import say
from tamt.data.glue import fetch, hub_split, report_counts
from tamt.data.rows import is_half, read_text
from tamt.data.tasks import Task
from tamt.errors import UserError

REMEDY = "give a file in the layout of SQuAD v1.1"


@dataclass
class Question:
    """A question and its right answers, which are spans of the context.

    Attributes:
        id: SQuAD's.
        question: the text of the question.
        context: the text that holds the answers.
        answers: the right answers, one or more; train questions have one.
        starts: where in the context each answer begins, in characters.
    """

    id: str
    question: str
    context: str
    answers: list[str]
    starts: list[int]


def load_questions(task: Task, data_dir: Path | None = None) -> dict[str, list[Question]]:
    """The train and dev questions of SQuAD.

    Args:
        task: SQuAD.
        data_dir: folder with `train-v1.1.json` and `dev-v1.1.json`, or one other `train*.json` and `dev*.json`, in
            place of the hub.

    Raises:
        UserError: a file is missing or not in SQuAD's layout, an answer is not at its offset, or there is no hub.
    """
    splits = _fetch(task) if data_dir is None else {s: _read(_find(data_dir, s)) for s in task.splits}
    report_counts(task, {split: len(questions) for split, questions in splits.items()})
    return splits


def _find(data_dir: Path, split: str) -> Path:
    official = data_dir / f"{split}-v1.1.json"
    found = [official] if official.is_file() else sorted(data_dir.glob(f"{split}*.json"))
    if len(found) != 1:
        what = "is no" if not found else f"are {len(found)} ({', '.join(file.name for file in found)}) but no"
        raise UserError(f"in {data_dir} there {what} {official.name}; give the folder with SQuAD's files as --data-dir")
    say(f"squad takes its {split} questions from {found[0]}")
    return found[0]


def _fetch(task: Task) -> dict[str, list[Question]]:
    fetched = fetch(task, "SQuAD's files: --data-dir FOLDER, with train-v1.1.json and dev-v1.1.json in it")
    return {
        split: [
            _question(
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


def _read(file: Path) -> list[Question]:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: no JSON ({error.msg}); {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no JSON ({error}); {REMEDY}") from error
    questions = []
    for i, article in enumerate(_get(file, "the file", content, "data", list)):
        for j, paragraph in enumerate(_get(file, f"data[{i}]", article, "paragraphs", list)):
            at = f"data[{i}].paragraphs[{j}]"
            context = _get(file, at, paragraph, "context", str)
            for k, row in enumerate(_get(file, at, paragraph, "qas", list)):
                here = f"{at}.qas[{k}]"
                answers = _get(file, here, row, "answers", list)
                texts = [_get(file, f"{here}.answers[{n}]", answer, "text", str) for n, answer in enumerate(answers)]
                starts = [
                    _get(file, f"{here}.answers[{n}]", answer, "answer_start", int) for n, answer in enumerate(answers)
                ]
                named = {key: _get(file, here, row, key, str) for key in ("id", "question")}
                questions.append(_question(f"{file}, {here}", named, context, texts, starts))
    if not questions:
        raise UserError(f"{file} has no questions; {REMEDY}")
    return questions


def _get(file: Path, at: str, value: Any, key: str, kind: type) -> Any:
    """`value[key]`, a number as text where text is wanted.

    Raises:
        UserError: naming the place, if it is not there or of another kind.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if kind is str and type(found) in (int, float):  # an id, say
        found = str(found)
    if not isinstance(found, kind):
        name = {list: "list", str: "text", int: "number"}[kind]
        raise UserError(f"{file}, {at}: there is no {name} {key!r}; {REMEDY}")
    if isinstance(found, str) and is_half(found):
        raise UserError(f"{file}, {at}: {key!r} holds half a character; correct its \\u escapes")
    return found


def _question(at: str, row: Any, context: str, answers: list[str], starts: list[int]) -> Question:
    if not answers:
        raise UserError(f"{at}: the question has no answer, as in SQuAD v2.0; give v1.1 or leave it out")
    for number, (answer, start) in enumerate(zip(answers, starts, strict=True)):
        if not answer or start < 0 or context[start : start + len(answer)] != answer:
            raise UserError(
                f"{at}.answers[{number}]: the answer {answer!r} is not at character {start} of its context; correct "
                "answer_start, which counts characters and not bytes"
            )
    return Question(row["id"], row["question"], context, list(answers), list(starts))
