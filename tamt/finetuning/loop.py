"""Training of a subnetwork on a task: pruned weights stay zero, and the model of the best evaluation is kept."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tamt_kernels as tk
from tamt.data.digest import data_digest
from tamt.data.tasks import Task
from tamt.finetuning.metrics import UNDEFINED
from tamt.finetuning.sparse import train_kept_only
from tamt.masks.masking import Masks, packed_masks
from tamt.models.sparse import save_as_dense
from tamt.options.finetune import FinetuneOptions
from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import sync_folder, sync_model_folder, telling, write_atomically
from tamt.training.compute import Compute
from tamt.training.loop import Loop, Pace, Training
from tamt.training.optimizer import make_optimizer
from tamt.training.run_folder import RunFolder
from tamt.training.steps import LazyLosses, Stepper
from tamt_kernels.reference import SPARSE_LAYOUT

MODEL_FOLDER = "model"
FORMER_MODEL = ".model.of-step-"
PREDICTIONS = "predictions*.jsonl"
SPARE_MEMORY = 0.25
"""The `spare` of `tk.reuse_freed_memory` for fine-tuning, whose batches have many lengths."""


class Job(Protocol):
    """A task prepared for a model, such as `Classification`."""

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    compute: Compute
    parts: int
    cuda_graphs: bool

    @property
    def train_samples(self) -> int:
        """Rows to train on."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    def digest(self) -> str:
        """Digest of the rows to train on and of the dev rows, tokenised, with their labels."""

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Training batches without end from step `first` (from 1) on."""

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts of the loss of a batch; `loss` is the one that is minimised."""

    def evaluate(self) -> dict[str, float | None]:
        """The metrics of the model on the dev rows, those of the task among them; None where one is undefined."""

    def predictions(self) -> dict[str, list[dict]]:
        """What the last evaluation predicted for every row of each dev set, by the name of the set."""


@dataclass
class Outcome:
    """The best score, with the step and all metrics of the first evaluation that reached it, and the final score.

    A score is None where it is undefined: the final one in the last evaluation, the best one in all evaluations.
    """

    best_score: float | None
    best_step: int
    best_metrics: dict[str, float | None]
    final_score: float | None
    final_step: int
    seconds: float


def train_subnetwork(job: Job, folder: RunFolder, masks: Masks, options: FinetuneOptions, *, lr: float) -> Outcome:
    """Train all remaining weights, evaluate every `eval_every` steps and at the end, and save the best model.

    While the score is undefined, the latest model is the best.

    Args:
        job: the task; its model must have zeros where `masks` prune.
        folder: gets `model/`, its predictions, metrics and checkpoints; from a checkpoint in it the run continues.
        masks: of the subnetwork; none for the full model.
        options: of the run; `sparse` is on or off.
        lr: peak learning rate, which falls to 0 over all steps.

    Raises:
        NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
    """
    training = FineTuning(job, folder, masks, options, lr)
    last = training.loop.run(training)
    best = training.best
    return Outcome(best["score"], best["step"], best["metrics"], training.score, last, folder.seconds)


class FineTuning(Training):
    """Fine-tuning as the loop runs it.

    Attributes:
        best: score, step and metrics of the best evaluation so far, and how many evaluations it has stood since.
        score: of the latest evaluation.
    """

    def __init__(self, job: Job, folder: RunFolder, masks: Masks, options: FinetuneOptions, lr: float) -> None:
        self._job, self._folder, self._early_stop = job, folder, options.early_stop
        self._masks = masks
        self._steps, self._metric = job.task.epochs * job.steps_per_epoch, job.task.metrics[0]
        self._layout = SPARSE_LAYOUT if options.sparse == "on" else None
        pruned = (train_kept_only if options.sparse == "on" else packed_masks)(job.model, masks)
        optimizer, schedule = make_optimizer(
            job.model.parameters(), lr, self._steps, options.weight_decay, pruned, options.warmup or 0.0
        )
        self._stepper = Stepper(
            job.compute, job.model, optimizer, schedule, job.parts, options.check_every, job.cuda_graphs
        )
        self.loop = Loop(job.task.name, folder, self._stepper, Pace(self._steps, options.log_every, options.save_every))
        self.best: dict[str, Any] = {}
        self.score: float | None = None

    def data(self) -> str:
        """That of the job's rows and of the masks."""
        bits = (tk.pack_mask(mask).cpu().numpy().ravel() for mask in self._masks.values())
        return f"{self._job.digest()} {data_digest([bits])}"

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Those of the job."""
        return self._job.batches(first)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """That of the job."""
        return self._job.loss(batch)

    def state(self) -> dict[str, Any]:
        """The model, the best evaluation, and in which order the optimizer holds the moments of sparse weights."""
        return {"model": self._job.model.state_dict(), "best": self.best, "layout": self._layout}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore what `state` saved. Raises UserError if the kernels order sparse weights otherwise now."""
        if checkpoint.get("layout") != self._layout:
            raise UserError(
                f"{self._folder.path} was begun by a version of tamt that orders sparse weights otherwise; continue it "
                "with that version, or start it anew"
            )
        self._job.model.load_state_dict(checkpoint["model"])
        self.best = checkpoint["best"]

    def before_steps(self, done: int) -> None:
        """Bring back the best model of the checkpoint."""
        if processes.first():
            restore_model(self._folder, self.best.get("step"))

    def after_step(self, step: int, losses: LazyLosses) -> None:
        """Log, and evaluate."""
        if self.loop.log_due(step):
            best = self.best.get("score")
            self.loop.log(step, losses, "" if best is None else f" best {self._metric} {best:.4f}")
        if step % self._job.task.eval_every == 0 or step == self._steps:
            self._evaluate(step)

    def after_checkpoint(self) -> None:
        """Delete the models before the best one, which the checkpoint knows."""
        drop_former_models(self._folder)

    def _evaluate(self, step: int) -> None:
        """Evaluate the model, save it if it is the best so far, and stop early if it was not for too long."""
        self._stepper.check(step)
        scores = self._job.evaluate()
        self.score = score = scores[self._metric]
        self._folder.log(step, **{f"dev_{name}": value for name, value in scores.items() if value is not None})
        best = self.best
        if not best or best["score"] is None or (score is not None and score > best["score"]):
            if score is None and not best:
                say(f"{self._metric} {UNDEFINED}, as at step {step}; it is reported as null")
            self.best = {"score": score, "step": step, "metrics": scores, "waited": 0}
            if processes.first():
                save_model(self._job, self._folder, best.get("step"))
            processes.wait()
        else:
            best["waited"] += 1
        if self.best["waited"] == self._early_stop and step != self._steps:
            say(f"stopped early: no better {self._metric} in {self._early_stop} evaluations up to step {step}")
            self.loop.stop()


def save_model(job: Job, folder: RunFolder, former_step: int | None) -> None:
    """Replace `model/` in the run folder by the current model and its tokenizer, in Hugging Face format.

    The predictions of the last evaluation go into `predictions.jsonl`, and those of further dev sets into
    `predictions_SET.jsonl`. The former model and its predictions stay in a hidden folder until `drop_former_models`:
    the run may have to continue from a checkpoint for which that model is the best.

    Args:
        job: the task, after an evaluation.
        folder: of the run.
        former_step: the step of the model that is replaced; None if there is none.
    """
    target, fresh = folder.path / MODEL_FOLDER, folder.path / ".model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with telling(target):
        save_as_dense(job.model, fresh)
        job.tokenizer.save_pretrained(fresh)
        sync_model_folder(fresh)
        if former_step is None or any(_former_models(folder)):
            shutil.rmtree(target, ignore_errors=True)
        else:
            former = folder.path / f"{FORMER_MODEL}{former_step}"
            target.rename(former)
            for predictions in folder.path.glob(PREDICTIONS):
                shutil.copy2(predictions, former)
        fresh.rename(target)
        sync_folder(folder.path)
    for name, rows in job.predictions().items():
        write_atomically(folder.path / predictions_file(name), as_lines(rows))


def restore_model(folder: RunFolder, best_step: int | None) -> None:
    """Bring back the model of `best_step` and its predictions if an interrupted run has replaced them since."""
    former = folder.path / f"{FORMER_MODEL}{best_step}"
    if former.exists():
        target = folder.path / MODEL_FOLDER
        with telling(target):
            for predictions in former.glob(PREDICTIONS):
                predictions.replace(folder.path / predictions.name)
            shutil.rmtree(target, ignore_errors=True)
            former.rename(target)
    drop_former_models(folder)


def drop_former_models(folder: RunFolder) -> None:
    """Delete the former models that `save_model` kept, once a checkpoint or the results refer to the current one."""
    if processes.first():
        for former in _former_models(folder):
            shutil.rmtree(former, ignore_errors=True)


def _former_models(folder: RunFolder) -> Iterator[Path]:
    return folder.path.glob(f"{FORMER_MODEL}*")


def as_lines(predictions: list[dict]) -> str:
    """Predictions as JSON, one row per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)


def predictions_file(dev_set: str) -> str:
    """The name of the file with the predictions for a dev set; the main one is called ""."""
    return f"predictions_{dev_set}.jsonl" if dev_set else "predictions.jsonl"
