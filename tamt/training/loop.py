"""The loop of every training that can be resumed: mask training, IMP and fine-tuning."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from torch import Tensor

from tamt.runtime import termination
from tamt.runtime.console import Progress
from tamt.runtime.errors import UserError
from tamt.training.loss_scale import NonFiniteError
from tamt.training.prefetch import Batch
from tamt.training.run_folder import RunFolder
from tamt.training.steps import LazyLosses, Stepper


class Training(Protocol):
    """One kind of training: what it minimises, what its checkpoints hold, and its own work between steps."""

    def data(self) -> str:
        """Digest of all that it reads and its checkpoints do not hold: a run continues with the same only."""
        ...

    def batches(self, first: int) -> Iterator[Batch]:
        """This process's batches from step `first` (from 1) on."""
        ...

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The parts of a batch's share in the loss of its step; the part `loss` is minimised."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides `Stepper.state`: all that `torch.load(weights_only=True)` reads back."""
        ...

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore what `state` saved."""
        ...

    def before_steps(self, done: int) -> None:
        """Called once, `done` steps into the run: 0, or those of the checkpoint that was restored."""
        return

    def after_step(self, step: int, losses: LazyLosses) -> None:
        """Log, prune, evaluate, save a mask: whatever is due after this step."""
        ...

    def after_checkpoint(self) -> None:
        """Called when a checkpoint was saved between two steps."""
        return


@dataclass(frozen=True)
class Pace:
    """How many steps a training takes, and how many steps lie between two logs and two checkpoints."""

    steps: int
    log_every: int
    save_every: int


class Loop:
    """Runs a training in its folder: resumes it, takes its steps, saves checkpoints.

    Args:
        name: of the training, for the progress bar.
        folder: gets metrics and checkpoints.
        stepper: takes the steps.
        pace: how many steps, and how often to log and save.
    """

    def __init__(self, name: str, folder: RunFolder, stepper: Stepper, pace: Pace) -> None:
        self._name, self._folder, self._stepper, self._pace = name, folder, stepper, pace
        self._progress: Progress
        self._stopped = False

    def run(self, training: Training) -> int:
        """Continue a training from its newest checkpoint, or begin it; the number of the last step is returned.

        Raises:
            UserError: what the training reads has changed since the checkpoint.
            NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
        """
        stepper, pace, data = self._stepper, self._pace, cache(training.data)

        def restore(checkpoint: Mapping[str, Any]) -> None:
            if checkpoint["data"] != data():
                raise UserError(
                    f"what the run in {self._folder.path} reads has changed since it began (the text or the rows, the "
                    "mask, or the model or MLM head of a search); bring it back, or start the run anew in another "
                    "folder"
                )
            training.restore(checkpoint)
            stepper.restore(checkpoint)

        def save(step: int) -> None:
            self._folder.save_checkpoint(step, {"data": data(), **training.state(), **stepper.state()})

        step = done = self._folder.resume(restore)
        training.before_steps(done)
        steps = stepper.take(training.batches(done + 1), training.loss, done + 1, pace.steps)
        with Progress(self._name, pace.steps, done) as self._progress, termination.deferred():
            try:
                for step, losses in steps:
                    training.after_step(step, losses)
                    if self._stopped:
                        break
                    if step % pace.save_every == 0 and step != pace.steps:
                        save(step)
                        training.after_checkpoint()
            except (NonFiniteError, termination.Terminated) as error:
                save(error.last_good)
                raise
        return step

    def log_due(self, step: int) -> bool:
        """Whether the losses of a step are to be logged: every `log_every` steps and at the end."""
        return step % self._pace.log_every == 0 or step == self._pace.steps

    def log(self, step: int, losses: LazyLosses, progress: str = "", **figures: float) -> None:
        """Log losses, other figures, the learning rate and the time, and show the loss with the words `progress`."""
        self._folder.log(step, **losses, **figures, lr=self._stepper.lr, seconds=self._folder.seconds)
        self._progress.update(step, f"loss {losses['loss']:.4f}{progress}")

    def stop(self) -> None:
        """End the training after this step."""
        self._stopped = True
