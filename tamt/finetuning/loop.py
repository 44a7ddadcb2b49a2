"""Training of a subnetwork on a task: pruned weights stay zero, the best model by the evaluations is kept."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.tasks import Task
from tamt.finetuning.metrics import UNDEFINED
from tamt.masks.masking import Masks, packed_masks
from tamt.runtime import processes, termination
from tamt.runtime.console import Progress, say
from tamt.runtime.files import sync_folder, sync_tree, telling, write_atomically
from tamt.training.loop import (
    NonFiniteError,
    make_optimizer,
    restore_training,
    trained_by,
    training_state,
    training_steps,
)
from tamt.training.run_folder import RunFolder

MODEL_FOLDER = "model"
FORMER_MODEL = ".model.of-step-"
PREDICTIONS = "predictions*.jsonl"
SPARE_MEMORY = 0.25
"""The `spare` of `tk.reuse_freed_memory` for fine-tuning, whose batches have many lengths."""


class Job(Protocol):
    """A task made ready for a model, such as `Classification`."""

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    cuda_graphs: bool

    @property
    def train_samples(self) -> int:
        """Rows to train on."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

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
    """The best score of the evaluations, with the step and all metrics of the first one that had it, and the final.

    A score is None where it is undefined in that evaluation; the best one, if it is so in all of them.
    """

    best_score: float | None
    best_step: int
    best_metrics: dict[str, float | None]
    final_score: float | None
    final_step: int
    seconds: float


def train_subnetwork(
    job: Job,
    folder: RunFolder,
    masks: Masks,
    steps: int,
    lr: float,
    weight_decay: float,
    eval_every: int,
    early_stop: int | None,
    log_every: int,
    save_every: int,
    check_every: int,
) -> Outcome:
    """Train all remaining weights, evaluate every `eval_every` steps and at the end, save the best model.

    While the score is undefined, the latest model is the best.

    Args:
        job: the task; its model must have zeros where `masks` prune.
        folder: gets `model/`, its predictions, metrics and checkpoints; one that holds a checkpoint is gone on with.
        masks: of the subnetwork; none for the full model.
        steps: optimizer steps, over which the learning rate falls to 0.
        lr: peak learning rate.
        weight_decay: AdamW's.
        eval_every: steps between two evaluations.
        early_stop: end after so many evaluations in a row with no better score; None: never.
        log_every: steps between two lines of metrics.
        save_every: steps between two checkpoints.
        check_every: steps between two checks that all processes hold the same weights.

    Raises:
        NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
    """
    model, metric = job.model, job.task.metrics[0]
    pruned = packed_masks(model, masks)
    optimizer, schedule = make_optimizer(model.parameters(), lr, steps, weight_decay, pruned)
    best: dict[str, Any] = {}

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "best": best,
            **training_state(job.accelerator, optimizer, schedule),
        }

    def restore(checkpoint: Mapping[str, Any]) -> None:
        nonlocal best
        model.load_state_dict(checkpoint["model"])
        restore_training(checkpoint, job.accelerator, optimizer, schedule)
        best = checkpoint["best"]

    done = folder.resume(restore)
    if processes.first():
        restore_model(folder, best.get("step"))
    step, score, last = done, None, False
    with Progress(job.task.name, steps, done) as progress, termination.deferred():
        try:
            batches = job.batches(done + 1)
            for step, parts in training_steps(
                job.accelerator,
                model,
                optimizer,
                schedule,
                batches,
                job.loss,
                done + 1,
                steps,
                check_every,
                job.cuda_graphs,
            ):
                last = step == steps
                if step % log_every == 0 or last:
                    folder.log(step, **parts, lr=float(schedule.get_last_lr()[0]), seconds=folder.seconds)
                    progress.update(step, f"loss {parts['loss']:.4f}{_shown(metric, best)}")
                if step % eval_every == 0 or last:
                    job.accelerator.scaler.check()
                    processes.check_trained(step, trained_by(optimizer))
                    scores = job.evaluate()
                    score = scores[metric]
                    folder.log(step, **{f"dev_{name}": value for name, value in scores.items() if value is not None})
                    if not best or best["score"] is None or (score is not None and score > best["score"]):
                        if score is None and not best:
                            say(f"{metric} {UNDEFINED}: so at step {step}; it is reported as null")
                        former = best.get("step")
                        best = {"score": score, "step": step, "metrics": scores, "waited": 0}
                        if processes.first():
                            save_model(job, folder, former)
                        processes.wait()
                    else:
                        best["waited"] += 1
                    if best["waited"] == early_stop and not last:
                        say(f"stopped early: no better {metric} in {early_stop} evaluations up to step {step}")
                        break
                if step % save_every == 0 and not last:
                    folder.save_checkpoint(step, state())
                    drop_former_models(folder)
        except (NonFiniteError, termination.Terminated) as error:
            folder.save_checkpoint(error.last_good, state())
            raise
    return Outcome(best["score"], best["step"], best["metrics"], score, step, folder.seconds)


def _shown(metric: str, best: dict[str, Any]) -> str:
    return f" best {metric} {best['score']:.4f}" if best and best["score"] is not None else ""


def save_model(job: Job, folder: RunFolder, former_step: int | None) -> None:
    """Replace `model/` in the run folder by the present model and its tokenizer, in Hugging Face form.

    What the model predicted in the last evaluation goes into `predictions.jsonl`, or, where there are several dev
    sets, also into `predictions_SET.jsonl`. The model before, with its predictions, stays beside it, hidden, until
    `drop_former_models`: the run may have to go on from a checkpoint for which that one is the best.

    Args:
        job: the task, after an evaluation.
        folder: of the run.
        former_step: the step of the model that is replaced; None if there is none.
    """
    target, fresh = folder.path / MODEL_FOLDER, folder.path / ".model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with telling(target):
        job.model.save_pretrained(fresh)
        job.tokenizer.save_pretrained(fresh)
        sync_tree(fresh)
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
    """Put the model of `best_step` and its predictions back where a run that was broken off had gone on to others."""
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
    """Delete what `save_model` left of models before, once a checkpoint knows the present one, or the results do."""
    if processes.first():
        for former in _former_models(folder):
            shutil.rmtree(former, ignore_errors=True)


def _former_models(folder: RunFolder) -> Iterator[Path]:
    return folder.path.glob(f"{FORMER_MODEL}*")


def as_lines(predictions: list[dict]) -> str:
    """Predictions as JSON, one row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)


def predictions_file(dev_set: str) -> str:
    """The name of the file of predictions for a dev set: plain for the main one, which is called ""."""
    return f"predictions{'_' * bool(dev_set)}{dev_set}.jsonl"
