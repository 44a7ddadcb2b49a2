"""The options of `tamt finetune`."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tamt.data.tasks import TASKS, Task, TaskName, with_columns
from tamt.options.base import Options
from tamt.options.values import check_seeds
from tamt.recipes import Recipe
from tamt.runtime.choices import (
    CHECK_EVERY,
    KEEP,
    Precision,
    RegressionStart,
    Sparse,
    Tracker,
    resolve_tracker,
)
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """Fine-tune a subnetwork, or the full model, on a task; pruned weights stay exactly zero.

    Args:
        task: the task: a GLUE task, squad (v1.1) or squad2 (v2.0); demo (the VADER movie snippets) or questions (TREC),
            which need no hub; or classification or regression with your own files.
        model: the pre-trained model: a hub name, a folder, "demo" or "demo-base".
        output: a new folder for the run: results.json, metrics.jsonl, config.yaml, the best model, its predictions
            on the dev rows and a plot of them. A number is added to the default if that is taken.
        mask: the ticket: a mask file, a run folder of tamt train, or hub:USER/REPO; by default the full model is
            fine-tuned.
        data_dir: GLUE's glue_data folder, or the folder with SQuAD's train-v1.1.json and dev-v1.1.json (squad2: v2.0);
            by default the hub.
        train_file: the train rows of classification or regression: .tsv (unquoted, like GLUE's), .csv or .jsonl.
        dev_file: the dev rows of classification or regression.
        text_column: the column with the text, or the two columns of a pair; by default sentence.
        label_column: the column with the label; by default label.
        train_samples: the number of train rows to use, a random subset, stratified by label; by default all.
        epochs: the passes over the train rows; by default the paper's 3 (2 for squad).
        batch_size: the rows per batch and process; by default the paper's 32 (16 for squad and demo, 8 for questions).
        max_length: the tokens per row. Longer rows are cut off; longer contexts of squad are split into windows. By
            default the paper's 128 (384 for squad, 64 for demo and questions), or the longest input of the model if
            that is less.
        lr: the peak learning rate, from which it falls linearly to 0; by default 2e-5 * 768 / width *
            (1 + 10 * sparsity), where a shrunk model has sparsity 0. With several rates, such as 1e-4,3e-4, each is
            run in OUTPUT/lr-RATE, and the one with the best mean score over the seeds is the result.
        warmup: the share of the steps, 0 to 1, in which the learning rate rises from 0 to its peak; by default none.
        recipe: how lr is chosen if it is not given: short by the rule above, paper 2e-5 (3e-5 for squad); and where a
            regression starts.
        regression_start: what the model of a regression gives at first: mean is the mean of the train labels, zero is
            0; auto is mean, or zero with --recipe paper.
        weight_decay: the weight decay of AdamW, for all parameters.
        eval_every: the steps between two evaluations; by default the paper's 50 (500 for mnli, qnli and qqp, 1000 for
            squad, 200 for demo and questions). The end is always evaluated.
        early_stop: the number of evaluations in a row without a better score after which training stops; by default
            never.
        stride: the tokens that two neighbouring windows of squad share; by default a third of the length, which is the
            paper's 128 of 384.
        n_best: the number of best starts and ends of an answer that are combined, for squad; by default 20.
        max_answer_length: the most tokens in an answer, for squad; by default 30.
        seed: the seed of the head, the order of the rows, dropout, and the subset.
        seeds: several seeds, such as 0,1,2, instead of one. Each is run in OUTPUT/seed-N; the result is the mean and
            standard deviation of their scores.
        precision: the precision of the model; auto is bf16 if the device has instructions for it, else fp16 on a GPU
            and fp32 on a CPU. Weights and their updates are always fp32.
        sparse: store, multiply and train the kept weights only, on a CPU in fp32: less time and memory for the same
            results, to rounding; auto does so where a short measurement says that it is faster.
        log_every: the steps between two lines of metrics.
        track: a tracker that shows the metrics too, by its name in accelerate; auto is TensorBoard, in the folder of
            the run, if it is installed, else none.
        save_every: the steps between two checkpoints.
        keep: the number of checkpoints to keep; if the newest is damaged, --resume takes the one before it.
        processes_of_step: the number of processes whose batches make one optimizer step, however many really run; by
            default the number that run, and with --resume that of the interrupted run.
        check_every: the steps between two checks that all processes have the same weights.
        no_cuda_graphs: start the kernels of a step one by one. By default, one process on a GPU starts each step as one
            CUDA graph, with batches padded to one of four lengths (8 to 17 ms instead of 45 on an H100).
        activation_checkpointing: keep only the inputs of layers and recompute the rest in the backward pass: less
            memory, more time, the same result. On a GPU it needs --no-cuda-graphs.
        resume: continue the interrupted runs in the output folder; finished runs are not repeated.
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
    warmup: float | None = None
    recipe: Recipe = "short"
    regression_start: RegressionStart = "auto"
    weight_decay: float = 0.0
    eval_every: int | None = None
    early_stop: int | None = None
    stride: int | None = None
    n_best: int | None = None
    max_answer_length: int | None = None
    seed: int = 0
    seeds: list[int] | None = None
    precision: Precision = "auto"
    sparse: Sparse = "auto"
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
        """The learning rates to try; None is the default."""
        return [*self.lr] if isinstance(self.lr, list) else [self.lr]

    def chosen_task(self) -> Task:
        """The task with these options instead of its defaults."""
        task = with_columns(TASKS[self.task], self.text_column, self.label_column)
        own: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "eval_every": self.eval_every,
        }
        return replace(task, **{name: value for name, value in own.items() if value is not None})

    def check(self) -> None:
        """Check the options together. Raises UserError if they cannot work."""
        self._check_task(TASKS[self.task])
        resolve_tracker(self.track)
        if self.resume and self.output == type(self).output:
            raise UserError("--resume needs the --output of the run to continue; give its folder")
        check_seeds(self.seeds)
        if self.stride is not None and self.stride < 0:
            raise UserError(f"--stride {self.stride} must not be negative; raise it or leave it out")
        self._check_rates()
        if self.sparse == "on" and self.mask is None:
            raise UserError("--sparse on needs a --mask, as a full model has no zeros; give it or leave --sparse out")
        if self.warmup is not None and not 0 <= self.warmup < 1:
            raise UserError(f"--warmup {self.warmup:g} must be at least 0 and less than 1; 0.1 is usual")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight-decay {self.weight_decay:g} must be 0 or more and finite; leave it out for none")

    def starts_at_mean(self) -> bool:
        """Whether the output of a regression starts at the mean of the train labels."""
        return self.regression_start == "mean" or (self.regression_start == "auto" and self.recipe != "paper")

    def _check_task(self, task: Task) -> None:
        with_columns(task, self.text_column, self.label_column)
        if self.regression_start != "auto" and task.kind != "regression":
            raise UserError(f"--regression-start is for a regression, and {task.name} is none; leave it out")
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
                raise UserError(f"--lr {rate:g} must be more than 0 and finite; correct it or leave it out")
            if rates.count(rate) > 1:
                raise UserError(f"--lr {rate:g} is given twice; give different rates")
        if not rates:
            raise UserError("--lr is an empty list; fill it or leave it out")
