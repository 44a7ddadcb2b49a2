"""The options of `tamt evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.data.tasks import TaskName
from tamt.options.base import Options
from tamt.runtime.choices import Precision
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Measure the MLM and KD loss of a subnetwork on dev text, or the score of a fine-tuned model on a task's dev rows.

    The masking of the tokens depends on the seed alone, so two masks are compared on the same tokens. A score is that
    of fine-tuning.

    Args:
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base"; for a --task the run folder of
            tamt finetune, or the folder or hub name of a fine-tuned model.
        corpus: wikitext-103 (its validation split), demo, or text files, one paragraph per line.
        mask: mask file of the subnetwork; without one the full model is measured.
        head: head.safetensors of a run, for a checkpoint without an MLM head or to measure with the trained one.
        max_length: tokens per block; 512, or what the model or its tokenizer takes at most if that is less. Per
            row for a --task; by default as in fine-tuning.
        batch_size: blocks per batch, by default 16; rows per batch for a --task, by default as in fine-tuning.
        blocks: measure only the first so many blocks of the text.
        precision: arithmetic of the model; auto is bf16 where the device has instructions for it, else fp16 on
            a GPU and fp32 on a CPU; for a run folder that of the run.
        seed: of the masked positions.
        task: measure the score on the dev rows of this task of tamt finetune, instead of the losses.
        data_dir: for a --task GLUE's glue_data folder, or the folder with SQuAD's dev-v1.1.json (squad2: v2.0); by
            default that of the run, else the hub.
        dev_file: dev rows of classification or regression; by default those of the run.
        text_column: their column with the text, or the two with a pair; by default those of the run, or sentence.
        label_column: their column with the label; by default that of the run, or label.
        sparse: run the matrices with many zeros by products that skip these, on a CPU; a folder of tamt export --format
            sparse runs so by itself.
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
        """Refuse options of losses with a task, and those of a task without one. Raises UserError."""
        on_text = ("corpus", "mask", "head", "blocks")
        on_task = ("data_dir", "dev_file", "text_column", "label_column")
        for option in on_text if self.task else on_task:
            if getattr(self, option) is not None:
                use, remedy = ("losses on text", "it or --task") if self.task else ("the score on a --task", "it")
                raise UserError(f"--{option.replace('_', '-')} is for {use}; leave {remedy} out")
        if self.task is None and self.corpus is None:
            raise UserError("--corpus is missing, or --task for the score of a fine-tuned model; give one of them")
