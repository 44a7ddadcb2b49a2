"""The options of `tamt predict`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.data.tasks import TaskName
from tamt.options.base import Options
from tamt.runtime.choices import Precision


@dataclass(frozen=True)
class PredictOptions(Options):
    """Predict the labels of rows, or the answers to questions, with a fine-tuned model.

    Where the file has labels, or answers, the scores are reported too.

    Args:
        model: run folder of tamt finetune, or folder or hub name of a fine-tuned model.
        file: rows as tamt finetune reads them, .tsv, .csv or .jsonl, or questions as SQuAD's .json; with labels or
            without, as GLUE's test.tsv.
        output: new file. Its name says what is written: .jsonl, an object per row with the prediction and the
            probability of each label; .tsv, a submission to GLUE; .json, SQuAD's predictions by the question's id.
        task: what the model is used for; by default the task of its run, or classification, regression or squad, as its
            head is. GLUE's tasks know their columns, squad2 leaves questions unanswered.
        text_column: the column with the text, or the two with a pair; by default those of the run, or sentence.
        label_column: the column with the label, if there is one; by default that of the run, or label.
        max_length: tokens per row, more are cut off, or make another window for squad; by default as in fine-tuning.
        batch_size: rows per batch, of which predictions take two at once; by default as in fine-tuning.
        precision: arithmetic of the model; auto is that of the run, else bf16 where the device has instructions for
            it, else fp16 on a GPU and fp32 on a CPU.
        sparse: run the matrices with many zeros by products that skip these, on a CPU; a folder of tamt export --format
            sparse runs so by itself.
    """

    model: str
    file: Path
    output: Path
    task: TaskName | None = None
    text_column: list[str] | None = None
    label_column: str | None = None
    max_length: int | None = None
    batch_size: int | None = None
    precision: Precision = "auto"
    sparse: bool = False
