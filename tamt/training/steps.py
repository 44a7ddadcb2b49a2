"""Optimizer steps, which mask training, IMP, head warm-up and fine-tuning all take in the same way.

No step waits for the device. Only the device knows whether the loss and the gradient were finite, so it decides there
whether a step changes anything (`LossScale`). A bad step is reported where the run waits for the device anyway: where
a loss is read, and before anything is saved or evaluated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import tamt_kernels as tk
from tamt.runtime import processes, termination
from tamt.runtime.choices import CHECK_EVERY
from tamt.training.compute import Compute, choose_products
from tamt.training.generators import generator_states, restore_generators
from tamt.training.optimizer import ClippedAdamW, gradients_of, trained_by
from tamt.training.prefetch import Batch, prefetch
from tamt.training.step_graph import Outcome, StepGraph
from tamt_kernels.backend import product_library

Loss = Callable[[Batch], Mapping[str, Tensor]]
"""Gives the parts of a batch's share in the loss of its step; the part `loss` is minimised."""


class LazyLosses(Mapping[str, float]):
    """The parts of a step's loss as numbers; reading one waits for the device.

    Reading raises NonFiniteError if the run has failed.
    """

    def __init__(self, parts: Mapping[str, Tensor], check: Callable[[], None]) -> None:
        self._parts, self._check = parts, check

    def __getitem__(self, name: str) -> float:
        self._check()
        return self._parts[name].item()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@dataclass
class Stepper:
    """Takes the optimizer steps of a training.

    A step takes `parts` batches, clips the norm of the gradient at 1.0, updates, and advances the schedule. Several
    processes each take batches of their own; gradients and losses are added up over all processes, so that all know
    the same and make the same update.

    A bad step, see `LossScale`, changes nothing, nor does any step after it (in fp16 not before the loss scale has
    fallen below 1). NonFiniteError reports it where a loss is read, and in `check` and `state`. What is saved then is
    the state after the last good step, whose number the error knows.

    Attributes:
        compute: device, precision and loss scale.
        model: set to train mode before each step, so the caller may evaluate in between.
        optimizer: of everything that trains.
        schedule: of the learning rate, advanced once per step.
        parts: batches per step in this process.
        check_every: steps between two checks that all processes hold the same.
        cuda_graphs: start steps from CUDA graphs, see `tamt.training.step_graph`; on a GPU, in one process.
        options: further arguments of `optimizer.step`.
    """

    compute: Compute
    model: nn.Module
    optimizer: ClippedAdamW | tk.MaskAdamW
    schedule: LRScheduler
    parts: int = 1
    check_every: int = CHECK_EVERY
    cuda_graphs: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def take(self, batches: Iterator[Batch], loss: Loss, first: int, last: int) -> Iterator[tuple[int, LazyLosses]]:
        """Take the steps `first` to `last`, both included, and yield after each. Ending early is allowed.

        Args:
            batches: as many as the steps need; a thread of its own makes them ahead of time (`prefetch`).
            loss: see `Loss`; the shares of the batches of a step are added up.
            first: number of the first step, from 1.
            last: number of the last step.

        Yields:
            The number of the step and its losses.

        Raises:
            LostProcessError, DifferError: see `tamt.runtime.processes`.
        """
        scale, device = self.compute.loss_scale, self.compute.device
        step_with = partial(self._step, loss)
        step_of = StepGraph(step_with, self.optimizer, device) if self.cuda_graphs else step_with
        count = (last + 1 - first) * self.parts
        with closing(prefetch(islice(batches, count), device)) as ready, processes.stepping():
            for step in range(first, last + 1):
                try:
                    processes.check_termination(step - 1)
                except termination.Terminated:
                    scale.check()
                    raise
                self.model.train()
                sums, norm = step_of(islice(ready, self.parts))
                scale.update(step, sums["loss"], norm)
                self.schedule.step()
                if step % self.check_every == 0:
                    processes.check_trained(step, trained_by(self.optimizer))
                yield step, LazyLosses(sums, scale.check)

    def _step(self, loss: Loss, batches: Iterable[Batch]) -> Outcome:
        scale = self.compute.loss_scale
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with self.compute.autocast():
                parts = loss(batch)
            for name, value in parts.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            (parts["loss"] * scale.scale).backward()
        if processes.count() > 1:
            _add_up(self.optimizer, sums)
        norm = self.optimizer.step(scale=scale.of_step(sums["loss"]), **self.options)
        self.optimizer.zero_grad()
        return sums, norm

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def check(self, step: int) -> None:
        """Check that the steps so far, the last of which was `step`, were good and the same in all processes.

        Raises:
            NonFiniteError: a step was bad.
            DifferError: what trains is not the same in all processes.
        """
        self.compute.loss_scale.check()
        processes.check_trained(step, trained_by(self.optimizer))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, besides what trains, to continue exactly: moments, schedule, generators, loss scale.

        The generators are those of all processes, so all must call this.

        Raises:
            NonFiniteError: a step was bad; the second call gives the state after the last good one.
            DifferError: what trains is not the same in all processes.
        """
        self.check(self.schedule.last_epoch)
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": processes.gather(generator_states()),
            "loss_scale": self.compute.loss_scale.state_dict(),
            "products": product_library.chosen() if self.compute.chooses_products else {},
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore what `state` saved, with the schedule at the checkpoint's `step`.

        With as many processes as saved it, each continues with its own generators; otherwise with new ones derived
        from those of process 0.
        """
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        # A bad step is reported later, and until then the schedule has advanced.
        self.schedule.last_epoch = checkpoint["step"] - 1
        self.schedule.step()
        generators = checkpoint["generators"]
        if len(generators) == processes.count():
            restore_generators(generators[processes.rank()])
        else:
            restore_generators(generators[0])
            processes.own_dropout()
        self.compute.loss_scale.load_state_dict(checkpoint["loss_scale"])
        if checkpoint["products"]:
            choose_products(checkpoint["products"])


def _add_up(optimizer: Optimizer, losses: dict[str, Tensor]) -> None:
    """Add gradients and losses up over the processes, in place, after the last batch of a step."""
    names = list(losses)
    values = torch.stack([losses[name].float() for name in names])
    processes.add_up([*gradients_of(optimizer), values])
    losses.update(zip(names, values.unbind(), strict=True))
