"""IMP: train the weights on MLM, prune the smallest, reset the rest to where they started, and repeat (paper 2.1)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import tamt_kernels as tk
from tamt.masks.file import MASK_FILE
from tamt.masks.masking import Masks, Sparsity, packed_masks, sparsity_of, top_masks
from tamt.methods import STAGES
from tamt.objectives import Losses
from tamt.runtime.structure import Structure
from tamt.search.search import Search
from tamt.training.loop import Loop, Pace, Training
from tamt.training.optimizer import make_optimizer
from tamt.training.steps import LazyLosses, Stepper


def iterative_pruning(search: Search) -> list[dict]:
    """Prune 10 % of the whole at step 0 and after every tenth of the schedule, until the sparsity is reached.

    Pruning is by magnitude of the trained weights, local in each matrix; what was pruned stays pruned. After every
    pruning all parameters, including those of the head, are reset to θ0 bit for bit, and AdamW starts with empty
    moments; the learning rate falls over the whole schedule (paper, Table 1 and B.2). A mask is saved at every pruning.

    Raises:
        NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
    """
    training = IterativePruning(search)
    training.loop.run(training)
    search.save_head()
    return training.results


class IterativePruning(Training):
    """IMP as the loop runs it.

    Attributes:
        results: the row of each pruning so far.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        options, plan, model = search.options, search.plan, search.student.model
        model.requires_grad_(True)
        search.student.decoder.weight.requires_grad_(False)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._initial = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._weights = search.weights()
        self._data = search.digest()  # now, as all of it trains
        self._masks: Masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self._weights.items()}
        self._packed = packed_masks(model, self._masks)  # each step clears the gradients by them
        self._optimizer, schedule = make_optimizer(
            self._parameters.values(), plan.lr, plan.schedule_steps, pruned=self._packed
        )
        self._interval = plan.schedule_steps // STAGES
        self.results: list[dict] = []
        self._losses = Losses(options.weights(), search.student)
        self._stepper = Stepper(
            search.compute,
            model,
            self._optimizer,
            schedule,
            search.text.parts,
            options.check_every,
            plan.cuda_graphs,
        )
        pace = Pace(plan.steps, options.log_every, options.save_every)
        self.loop = Loop(options.method, search.folder, self._stepper, pace)

    def data(self) -> str:
        """That of the search at its start."""
        return self._data

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """See `Text.batches`."""
        return self._search.text.batches(first, masked=True)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The MLM loss."""
        return self._losses(batch)

    def state(self) -> dict[str, Any]:
        """All parameters, the masks so far and their rows of results."""
        trained = {name: p.detach() for name, p in self._parameters.items()}
        return {"trained": trained, "masks": self._masks, "results": self.results}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore what `state` saved."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(checkpoint["trained"][name])
        self._set_masks({name: mask.to(self._search.compute.device) for name, mask in checkpoint["masks"].items()})
        self.results = checkpoint["results"]

    def before_steps(self, done: int) -> None:
        """The first pruning."""
        if done == 0:
            self._prune(0)

    def after_step(self, step: int, losses: LazyLosses) -> None:
        """Log, and prune or measure the dev losses."""
        if self.loop.log_due(step):
            sparsity = sparsity_of(self._masks)
            self.loop.log(step, losses, f" sparsity {sparsity:.2%}", sparsity=sparsity)
        if step % self._interval == 0:
            self._prune(step)
        elif self._search.evaluation_due(step):
            self._search.log_dev_losses(step)

    def _prune(self, step: int) -> None:
        search = self._search
        self._stepper.check(step)
        sparsity = sparsity_at(step // self._interval + 1, search.sparsity)
        if sparsity is None:
            return
        self._set_masks(prune_and_reset(self._weights, self._parameters, self._initial, self._masks, sparsity))
        self._optimizer.forget()
        share = sparsity_of(self._masks) if isinstance(sparsity, tk.Pattern) else sparsity
        final = sparsity == search.sparsity
        path = search.save(self._masks, step, MASK_FILE if final else f"masks/sparsity-{share:g}.safetensors", sparsity)
        dev = search.log_dev_losses(step, sparsity=sparsity_of(self._masks))
        self.results.append({**search.result(self._masks, step, search.folder.seconds, dev), "mask": str(path)})

    def _set_masks(self, masks: Masks) -> None:
        self._masks = masks
        for (_, bits), (_, renewed) in zip(self._packed, packed_masks(self._search.student.model, masks), strict=True):
            bits.copy_(renewed)  # in place, as a CUDA graph knows their addresses


def sparsity_at(stage: int, target: Sparsity) -> Sparsity | None:
    """How much the masks prune after a stage, from 1 to 10: a tenth of the whole more than after the one before.

    A pattern keeps whole entries of a group: 2:4 keeps 3 of 4 after the third stage, and 2 after the fifth. None if a
    stage prunes nothing.
    """
    assert not isinstance(target, Structure), "IMP prunes single weights"
    if not isinstance(target, tk.Pattern):
        return min(target, stage / STAGES)
    before, now = (max(target.n, -(-target.m * (STAGES - done) // STAGES)) for done in (stage - 1, stage))
    return None if now == before else tk.Pattern(now, target.m)


@torch.no_grad()
def prune_and_reset(
    weights: dict[str, Tensor],
    parameters: dict[str, torch.nn.Parameter],
    initial: dict[str, Tensor],
    masks: Masks,
    sparsity: Sparsity,
) -> Masks:
    """One pruning: rank by |trained weight|, reset all parameters to θ0, and set the pruned ones to zero.

    The reset copies values. The published code, and the code it is based on, kept a reference to the weights that then
    trained, so its reset did nothing.

    Args:
        weights: the prunable matrices.
        parameters: everything that trains, including the matrices.
        initial: a copy of `parameters` at the start, θ0.
        masks: what is kept so far; nothing else can be kept.
        sparsity: what the masks prune after the pruning.

    Returns:
        The new masks, each `is_exact`.
    """
    magnitudes = {name: weight.abs().masked_fill_(~masks[name], -1) for name, weight in weights.items()}
    pruned = top_masks(magnitudes, sparsity)
    for name, parameter in parameters.items():
        parameter.copy_(initial[name])
    for name, weight in weights.items():
        weight.masked_fill_(~pruned[name], 0)
    return pruned
