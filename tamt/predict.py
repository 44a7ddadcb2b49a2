"""`tamt predict`: what a fine-tuned model answers for the rows of a file."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tamt.data.rows import read_file, to_rows
from tamt.data.squad import read_questions
from tamt.data.tasks import Task
from tamt.errors import UserError
from tamt.files import write_atomically
from tamt.finetune.loop import as_lines
from tamt.finetune.saved import open_finetuned
from tamt.precision import Precision

IDS = ("index", "id")
"""Columns with the name of a row: GLUE's, QQP's id."""


def predict(
    model: str,
    file: Path,
    output: Path,
    task: str | None = None,
    text_column: list[str] | None = None,
    label_column: str | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    precision: Precision = "auto",
) -> dict:
    """Predict the labels of rows, or the answers to questions, with a fine-tuned model.

    Where the file has labels, or answers, the scores are reported too.

    Args:
        model: run folder of tamt finetune, or folder or hub name of a fine-tuned model.
        file: rows as tamt finetune reads them, .tsv, .csv or .jsonl, or questions as SQuAD's .json; with labels or
            without, as GLUE's test.tsv.
        output: new file. Its name says what is written: .jsonl, an object a row with the prediction and the
            probability of each label; .tsv, a submission to GLUE; .json, SQuAD's predictions by the question's id.
        task: what the model is used for; by default the task of its run, or classification, regression or squad, as its
            head is. GLUE's tasks know their columns, squad2 leaves questions unanswered.
        text_column: the column with the text, or the two with a pair; by default those of the run, or sentence.
        label_column: the column with the label, if there is one; by default that of the run, or label.
        max_length: tokens of a row, more are cut off, or make another window for squad; by default as in fine-tuning.
        batch_size: rows a batch, of which predictions take two at once; by default as in fine-tuning.
        precision: arithmetic of the model; auto is that of the run, else bf16 where the device has instructions for
            it, else fp16 on a GPU and fp32 on a CPU.
    """
    started = time.monotonic()
    if output.exists():
        raise UserError(f"the output {output} exists and is not overwritten; give a new --output")
    saved = open_finetuned(model, task, text_column, label_column, max_length, batch_size, precision)
    questions = saved.task.kind == "question-answering"
    formats = (".json", ".jsonl") if questions else (".tsv", ".jsonl")
    if output.suffix not in formats:
        raise UserError(
            f"the output {output} must end in {' or '.join(formats)} for {saved.task.name}, which says what is written"
        )
    if questions:
        asked, answered = read_questions(file, saved.task, need_answers=False)
        job = saved.prepare(asked, answered)
    else:
        found = read_file(file, saved.task, need_labels=False)
        rows = to_rows(saved.task, file, found, f"leave the column {saved.task.label_column} out")
        job = saved.prepare({"": rows})
    scores = job.evaluate()
    predictions = job.predictions()[""]
    if not questions:
        predictions = [{**row, "id": _id(read, row["id"])} for row, (_, read) in zip(predictions, found, strict=True)]
    write_atomically(output, WRITERS[output.suffix](saved.task, predictions))
    result = saved.result(len(predictions), scores, started)
    return {"results": [{**result, "file": str(file), "output": str(output)}]}


def _id(row: Mapping[str, Any], number: int) -> str | int:
    """What the file calls a row, or its number, from 0."""
    return next((row[column] for column in IDS if isinstance(row.get(column), str)), number)


def _submission(task: Task, predictions: list[dict]) -> str:
    """GLUE's layout: the ids or names of labels, as the task's files have them; scores within their scale."""
    lines = ["index\tprediction"]
    for row in predictions:
        answer = row["prediction"]
        if task.kind == "regression":
            lowest, highest = task.scale or (-math.inf, math.inf)
            answer = min(max(answer, lowest), highest)
        elif task.numbered_labels:
            answer = (task.label_names or ()).index(answer)
        lines.append(f"{row['id']}\t{answer}")
    return "\n".join(lines) + "\n"


def _answers(_: Task, predictions: list[dict]) -> str:
    """SQuAD's layout, which its official script reads: the answer of each question by its id."""
    return json.dumps({row["id"]: row["prediction"] for row in predictions}, ensure_ascii=False) + "\n"


WRITERS: dict[str, Callable[[Task, list[dict]], str]] = {
    ".jsonl": lambda _, predictions: as_lines(predictions),
    ".tsv": _submission,
    ".json": _answers,
}
