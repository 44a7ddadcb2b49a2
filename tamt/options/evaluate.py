"""The options of `tamt evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.data.tasks import TaskName
from tamt.options.base import Options
from tamt.runtime.choices import Precision
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Measure the MLM and KD loss of a subnetwork on dev text, or the score of a fine-tuned model on a task.

    Which tokens are masked depends on the seed only, so masks are compared on the same tokens. A score is computed as
    in fine-tuning.

    Args:
        model: the pre-trained model: a hub name, a folder, "demo" or "demo-base". With --task, a fine-tuned model: the
            run folder of tamt finetune, a folder or a hub name.
        corpus: the text: wikitext-103 (its validation split), demo, or text files with one paragraph per line.
        mask: the ticket: a mask file, a run folder of tamt train, or hub:USER/REPO; by default the full model is
            measured.
        head: the head.safetensors of a run: for a checkpoint without an MLM head, or to measure with the trained head.
        max_length: the tokens per block; by default 512, or the longest input of the model if that is less. With
            --task, the tokens per row; by default as in fine-tuning.
        batch_size: the blocks per batch; by default 16. With --task, the rows per batch; by default as in fine-tuning.
        blocks: the number of blocks of the text to measure on; by default all.
        precision: the precision of the model; auto is that of the run for a run folder, else bf16 if the device has
            instructions for it, else fp16 on a GPU and fp32 on a CPU.
        seed: the seed of the masked positions.
        task: measure the score on the dev rows of this task instead of the losses.
        data_dir: with --task, GLUE's glue_data folder or the folder with SQuAD's dev-v1.1.json (squad2: v2.0); by
            default that of the run, else the hub.
        dev_file: the dev rows of classification or regression; by default those of the run.
        text_column: the column with the text, or the two columns of a pair; by default as in the run, else sentence.
        label_column: the column with the label; by default as in the run, else label.
        sparse: run matrices with many zeros by products that skip the zeros, on a CPU; a folder by tamt export --format
            sparse always does.
    """

    model: str
    corpus: list[str] | None = None
    mask: Path | None = None
    head: Path | None = None
    max_length: int | None = None
    batch_size: int | None = None
    blocks: int | None = None
    precision: Precision = "auto"
    seed: int = 0
    task: TaskName | None = None
    data_dir: Path | None = None
    dev_file: Path | None = None
    text_column: list[str] | None = None
    label_column: str | None = None
    sparse: bool = False

    def check(self) -> None:
        """Check that options for text and for a task are not mixed. Raises UserError."""
        on_text = ("corpus", "mask", "head", "blocks")
        on_task = ("data_dir", "dev_file", "text_column", "label_column")
        for option in on_text if self.task else on_task:
            if getattr(self, option) is not None:
                use, remedy = ("losses on text", "it or --task") if self.task else ("the score on a --task", "it")
                raise UserError(f"--{option.replace('_', '-')} is for {use}; leave {remedy} out")
        if self.task is None and self.corpus is None:
            raise UserError("--corpus is missing; give it, or --task for the score of a fine-tuned model")
