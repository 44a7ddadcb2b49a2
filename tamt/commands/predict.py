"""`tamt predict`: the predictions of a fine-tuned model for the rows of a file."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tamt.data.rows import read_file, to_rows
from tamt.data.squad import read_questions
from tamt.data.tasks import Task
from tamt.finetuning.loop import as_lines
from tamt.finetuning.saved import open_finetuned
from tamt.options.base import command
from tamt.options.predict import PredictOptions
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically

IDS = ("index", "id")
"""Columns with the id of a row: `index` in GLUE, `id` in QQP."""


@command(PredictOptions)
def predict(options: PredictOptions) -> dict:
    """Run `tamt predict`."""
    started = time.monotonic()
    output = options.output
    if output.exists():
        raise UserError(f"the output {output} exists and is not overwritten; give a new --output")
    saved = open_finetuned(options)
    questions = saved.task.kind == "question-answering"
    formats = (".json", ".jsonl") if questions else (".tsv", ".jsonl")
    if output.suffix not in formats:
        raise UserError(f"the output {output} must end in {' or '.join(formats)} for {saved.task.name}; rename it")
    if questions:
        asked, answered = read_questions(options.file, saved.task, need_answers=False)
        repeated = next((id for id, count in Counter(one.id for one in asked).items() if count > 1), None)
        if output.suffix == ".json" and repeated is not None:
            raise UserError(
                f"{options.file} has several questions with the id {repeated}, of which a .json keeps one answer; give "
                "each an id of its own, or an --output that ends in .jsonl"
            )
        job = saved.prepare(asked, answered)
    else:
        found = read_file(options.file, saved.task, need_labels=False)
        rows = to_rows(saved.task, options.file, found, f"leave the column {saved.task.label_column} out")
        job = saved.prepare({"": rows})
    scores = job.evaluate()
    predictions = job.predictions()[""]
    if not questions:
        predictions = [{**row, "id": _id(read, row["id"])} for row, (_, read) in zip(predictions, found, strict=True)]
    write_atomically(output, WRITERS[output.suffix](saved.task, predictions))
    result = saved.result(len(predictions), scores, started)
    return {"results": [{**result, "file": str(options.file), "output": str(output)}]}


def _id(row: Mapping[str, Any], number: int) -> str | int:
    """The id of a row in the file, or its number from 0."""
    return next((row[column] for column in IDS if isinstance(row.get(column), str)), number)


def _submission(task: Task, predictions: list[dict]) -> str:
    """GLUE's layout: ids or names of labels as in the task's files; scores are clipped to their scale."""
    lines = ["index\tprediction"]
    for row in predictions:
        answer = row["prediction"]
        if task.kind == "regression":
            lowest, highest = task.scale or (-math.inf, math.inf)
            answer = min(max(answer, lowest), highest)
        elif task.numbered_labels:
            answer = (task.label_names or ()).index(answer)
        lines.append(line := f"{row['id']}\t{answer}")
        if line.count("\t") > 1 or "\n" in line:
            raise UserError(f"{line!r} is no line of a .tsv; give an --output that ends in .jsonl")
    return "\n".join(lines) + "\n"


def _answers(_: Task, predictions: list[dict]) -> str:
    """SQuAD's layout for its official script: the answers by the id of the question."""
    return json.dumps({row["id"]: row["prediction"] for row in predictions}, ensure_ascii=False) + "\n"


WRITERS: dict[str, Callable[[Task, list[dict]], str]] = {
    ".jsonl": lambda _, predictions: as_lines(predictions),
    ".tsv": _submission,
    ".json": _answers,
}
