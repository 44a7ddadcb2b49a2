"""The options of `tamt predict`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.data.tasks import TaskName
from tamt.options.base import Options
from tamt.runtime.choices import Precision


@dataclass(frozen=True)
class PredictOptions(Options):
    """Predict the labels of rows, or the answers to questions, with a fine-tuned model.

    If the file has labels or answers, the scores are reported too.

    Args:
        model: the fine-tuned model: the run folder of tamt finetune, a folder or a hub name.
        file: the rows, in the formats of tamt finetune (.tsv, .csv, .jsonl), or questions like SQuAD's .json; labels
            and answers may be missing.
        output: a new file. Its name gives the format: .jsonl, an object per row with the prediction and the probability
            of each label; .tsv, a submission to GLUE; .json, SQuAD's predictions by the id of the question.
        task: the task of the model; by default that of the run, else classification, regression or squad, according to
            its head. GLUE's tasks know their columns; squad2 leaves questions unanswered.
        text_column: the column with the text, or the two columns of a pair; by default as in the run, else sentence.
        label_column: the column with the label, if there is one; by default as in the run, else label.
        max_length: the tokens per row. Longer rows are cut off; longer contexts of squad are split into windows. By
            default as in fine-tuning.
        batch_size: the rows per batch; two batches are predicted at once. By default as in fine-tuning.
        precision: the precision of the model; auto is that of the run, else bf16 if the device has instructions for it,
            else fp16 on a GPU and fp32 on a CPU.
        sparse: run matrices with many zeros by products that skip the zeros, on a CPU; a folder by tamt export --format
            sparse always does.
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
