"""The options of `tamt finetune`."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tamt.data.tasks import TASKS, Task, TaskName, with_columns
from tamt.options.base import Options
from tamt.recipes import Recipe
from tamt.runtime.choices import CHECK_EVERY, KEEP, Precision, Tracker, resolve_tracker
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """Fine-tune a subnetwork, or the full model, on a task; what the mask prunes stays exactly zero.

    Args:
        task: cola, sst2, rte, mnli, mrpc, stsb, qnli, qqp, wnli, squad or squad2; demo (the VADER movie snippets) or
            questions (TREC's), from the package index; or classification or regression, with files of your own.
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
        output: new folder for the run: results.json, metrics.jsonl, config.yaml, the best model, its predictions on the
            dev rows and a picture of them. If the default is taken, a number is added.
        mask: mask file of the subnetwork; without it the full model is fine-tuned.
        data_dir: GLUE's glue_data folder, or the folder with SQuAD's train-v1.1.json and dev-v1.1.json (squad2:
            v2.0), instead of the hub.
        train_file: train rows of classification or regression: .tsv (unquoted, as GLUE's), .csv or .jsonl.
        dev_file: dev rows of classification or regression.
        text_column: the column with the text, or the two with a pair; sentence by default.
        label_column: the column with the label; label by default.
        train_samples: train on a seeded random subset of so many rows, stratified by label where there are labels.
        epochs: passes over the train rows; by default the paper's, 3 (2 for squad).
        batch_size: rows per batch, in each process; by default the paper's, 32 (16 for squad and demo).
        max_length: tokens per row, more are cut off, or make another window for squad; by default the paper's, 128
            (384 for squad, 64 for demo), or the model's positions if fewer.
        lr: peak learning rate, which falls linearly to 0; by default 2e-5 * 768 / width * (1 + 10 * sparsity), with the
            width of the model and the sparsity of the mask. Several, with commas: each is run in OUTPUT/lr-RATE, and
            the one with the best score, or the best mean over the seeds, is the result.
        recipe: where no lr is given: short, the rule above; paper, the paper's 2e-5 (3e-5 for squad).
        weight_decay: AdamW's, of every parameter.
        eval_every: steps between two evaluations; by default the paper's, 50 (500 for mnli, qnli and qqp, 1000
            for squad, 200 for demo). The end is always evaluated.
        early_stop: end after so many evaluations in a row with no better score; by default never.
        stride: tokens that two windows over a long context of squad share; by default a third of the length, the
            paper's 128 of 384.
        n_best: starts and ends of an answer that are paired for squad; by default 20.
        max_answer_length: tokens of an answer for squad; by default 30.
        seed: of the head, the order of the rows, dropout, and the subset.
        seeds: several seeds instead of one, with commas: one run after the other in OUTPUT/seed-N, and the mean and
            standard deviation of their scores.
        precision: arithmetic of the model; auto is bf16 where the device has instructions for it, else fp16 on
            a GPU and fp32 on a CPU. The weights and their updates are always fp32.
        log_every: steps between two lines of metrics.
        track: tracker that shows the metrics too, as accelerate names it; auto is TensorBoard, in the folder of the
            run, if it is installed, else none.
        save_every: steps between two checkpoints.
        keep: checkpoints to keep, the newest ones; should one be damaged, --resume falls back on the one before it.
        processes_of_step: a training step takes the batches of so many processes, however many share them; by default
            of those that were started, and on --resume of those that the run began with.
        check_every: steps between two checks that all processes hold the same weights.
        no_cuda_graphs: start the kernels of a step one by one. On a GPU, in one process, each step is else started as
            one CUDA graph, and its batch padded to one of four lengths, on an H100 8 to 17 ms instead of 45.
        activation_checkpointing: keep only the inputs of layers, and compute the rest again in the backward pass, for
            the same result in less memory and more time; on a GPU with --no-cuda-graphs.
        resume: continue the interrupted run, or runs, in the output folder; what is finished is not done again.
    """

    MAY_BE_0: ClassVar[set[str]] = {"stride"}
    NOT_SAVED: ClassVar[set[str]] = Options.NOT_SAVED | {"seeds"}

    task: TaskName
    model: str
    output: Path = Path("runs/MODEL-METHOD-SPARSITY-TASK-DATE")
    mask: Path | None = None
    data_dir: Path | None = None
    train_file: Path | None = None
    dev_file: Path | None = None
    text_column: list[str] | None = None
    label_column: str | None = None
    train_samples: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    max_length: int | None = None
    lr: list[float] | float | None = None
    recipe: Recipe = "short"
    weight_decay: float = 0.0
    eval_every: int | None = None
    early_stop: int | None = None
    stride: int | None = None
    n_best: int | None = None
    max_answer_length: int | None = None
    seed: int = 0
    seeds: list[int] | None = None
    precision: Precision = "auto"
    log_every: int = 10
    track: Tracker = "auto"
    save_every: int = 500
    keep: int = KEEP
    processes_of_step: int | None = None
    check_every: int = CHECK_EVERY
    no_cuda_graphs: bool = False
    activation_checkpointing: bool = False
    resume: bool = False

    def rates(self) -> list[float | None]:
        """The learning rates to try; None stands for the default."""
        return [*self.lr] if isinstance(self.lr, list) else [self.lr]

    def chosen_task(self) -> Task:
        """The task, with these options instead of its defaults."""
        task = with_columns(TASKS[self.task], self.text_column, self.label_column)
        own: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "eval_every": self.eval_every,
        }
        return replace(task, **{name: value for name, value in own.items() if value is not None})

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded. Raises UserError."""
        self._check_task(TASKS[self.task])
        resolve_tracker(self.track)
        if self.resume and self.output == type(self).output:
            raise UserError("--resume needs the --output of the run to continue; give its folder")
        for seed in self.seeds or []:
            if not 0 <= seed < 2**32 or (self.seeds or []).count(seed) > 1:
                raise UserError(
                    f"--seeds {seed} is negative, over 32 bits or there twice; give different ones from 0 on"
                )
        if self.stride is not None and self.stride < 0:
            raise UserError(f"--stride {self.stride} must not be negative; raise it or leave it out")
        self._check_rates()
        if self.weight_decay < 0:
            raise UserError(f"--weight-decay {self.weight_decay:g} must not be negative; leave it out for none")

    def _check_task(self, task: Task) -> None:
        with_columns(task, self.text_column, self.label_column)
        if task.kind == "question-answering":
            if self.train_file is not None or self.dev_file is not None:
                raise UserError(
                    f"--train-file and --dev-file are for --task classification, not {task.name}; give --data-dir"
                )
            return
        answers = {"stride": self.stride, "n-best": self.n_best, "max-answer-length": self.max_answer_length}
        for flag, number in answers.items():
            if number is not None:
                raise UserError(f"--{flag} is for --task squad or squad2, not {task.name}; leave it out")

    def _check_rates(self) -> None:
        rates = self.rates()
        for rate in rates:
            if rate is not None and not 0 < rate < math.inf:
                raise UserError(f"--lr {rate:g} must be more than 0 and finite; raise it or leave it out")
            if rates.count(rate) > 1:
                raise UserError(f"--lr {rate:g} is there twice; give different rates")
        for flag, listed in {"lr": rates, "seeds": self.seeds}.items():
            if listed == []:
                raise UserError(f"--{flag} is an empty list; fill it or leave it out")
