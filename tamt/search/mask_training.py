"""TAMT: scores are trained through the straight-through estimator, and rank the weights into the mask (paper 3.4)."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

import tamt_kernels as tk
from tamt.masks.file import MASK_FILE
from tamt.masks.gates import Gate, put_gates, renew_gates
from tamt.masks.masking import (
    Masked,
    MaskedModule,
    Masks,
    masks_of,
    pattern_of,
    sparsity_of,
    wrap,
)
from tamt.objectives import Losses
from tamt.runtime.structure import Structure
from tamt.search.scores import scores_for, set_scores, starting_point
from tamt.search.search import Search
from tamt.terms import needs_head
from tamt.training.loop import Loop, Pace, Training
from tamt.training.optimizer import MAX_GRADIENT_NORM, GateAdamW
from tamt.training.steps import LazyLosses, Stepper


def train_masks(search: Search) -> list[dict]:
    """Train all masks of a model together towards a pre-training objective.

    Every weight is frozen; the scores train, and with losses of logits the MLM head. After every `threshold_every`
    steps (1; in the published code 100-1000), and before a mask is saved, each mask is renewed to exactly its `keep`
    ones; between renewals the masks stay the same. The ranking is by the score (eq. 3) or by its absolute value (the
    text of 3.4.2).

    Args:
        search: see `Search`; its teacher must be the dense twin of the student.

    Raises:
        UserError: see `tamt.search.scores.starting_point` and `tamt.objectives.Losses`.
        NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
    """
    training = MaskTraining(search)
    training.loop.run(training)
    return training.finish()


class MaskTraining(Training):
    """Mask training as the loop runs it."""

    def __init__(self, search: Search) -> None:
        self._search = search
        options, student = search.options, search.student
        objective = options.weights()
        first_masks, importance = starting_point(search)
        self._data = search.digest()  # now, as the head may train
        self._head = student.head_parameters() if needs_head(objective) else {}
        self._every_step = options.threshold_every == 1
        self._masked: Mapping[str, Masked]
        self._renew: Callable[[], None]
        optimizer: tk.MaskAdamW | GateAdamW
        # The losses copy the head before it trains. They come after masked layers, which replace those that the losses
        # watch, but before gates, of which the copy has none.
        if isinstance(search.sparsity, Structure):
            self._losses = Losses(objective, student, search.teacher)
            gates, optimizer, schedule = start_gates(search, first_masks, self._head, importance)
            self._masked, self._renew = gates, partial(renew_gates, gates.values())
        else:
            modules, optimizer, schedule = start(search, first_masks, self._head, self._every_step, importance)
            self._masked, self._renew = modules, partial(tk.update_masks, modules.values())
            self._losses = Losses(objective, student, search.teacher)
        # The first masks are kept as bits, 14 MB for BERT-base instead of 0.1 GB, and the current masks only where they
        # do not follow from the scores.
        self._first_bits = {name: tk.pack_mask(mask) for name, mask in first_masks.items()}
        self._masks: Masks = {} if self._every_step else first_masks
        self._trained = {**{f"score {name}": module.score for name, module in self._masked.items()}, **self._head}
        self._stepper = Stepper(
            search.compute,
            student.model,
            optimizer,
            schedule,
            search.text.parts,
            options.check_every,
            search.plan.cuda_graphs,
            {} if isinstance(optimizer, GateAdamW) else {"renew": self._every_step},
        )
        pace = Pace(search.plan.steps, options.log_every, options.save_every)
        self.loop = Loop(options.method, search.folder, self._stepper, pace)

    def data(self) -> str:
        """That of the search at its start."""
        return self._data

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """See `Text.batches`; with a loss of logits the tokens are masked."""
        return self._search.text.batches(first, masked=bool(self._head))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective."""
        return self._losses(batch)

    def state(self) -> dict[str, Any]:
        """Scores and head, and the masks where they do not follow from the scores."""
        return {"trained": {name: tensor.detach() for name, tensor in self._trained.items()}, "masks": self._masks}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore what `state` saved."""
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(checkpoint["trained"][name])
        self._renew()
        self._masks = {name: mask.to(self._search.compute.device) for name, mask in checkpoint["masks"].items()}
        for name, mask in self._masks.items():  # the scores have changed since these masks were renewed
            module = self._masked[name]
            assert isinstance(module, tk.MaskedLinear | tk.MaskedEmbedding)
            masked_weight = module.masked
            assert masked_weight is not None
            masked_weight.tensor.detach().copy_(masked_weight.weight).masked_fill_(~mask, 0)

    def after_step(self, step: int, losses: LazyLosses) -> None:
        """Renew the masks if they are not renewed in each step, log, save a mask, and measure the dev losses."""
        search, options = self._search, self._search.options
        last, save = step == search.plan.steps, step in (options.save_at or ())
        if not self._every_step and (step % options.threshold_every == 0 or last or save):
            search.compute.loss_scale.check()  # masks follow from good scores alone
            self._renew()
            self._masks = masks_of(self._masked)
        if self.loop.log_due(step):
            masks = masks_of(self._masked) if self._every_step else self._masks
            sparsity, changed = sparsity_of(masks), self._changed(masks)
            del masks
            progress = f" sparsity {sparsity:.2%} changed {changed:.2%}"
            self.loop.log(step, losses, progress, sparsity=sparsity, changed=changed)
        if save:
            search.save(masks_of(self._masked), step, f"masks/step-{step}.safetensors")
        if search.evaluation_due(step):
            search.log_dev_losses(step)

    def finish(self) -> list[dict]:
        """Write the mask and the head, measure the dev losses, and return the row of results."""
        search, step = self._search, self._search.plan.steps
        self._stepper.check(step)
        masks = masks_of(self._masked)
        seconds = search.folder.seconds
        search.save(masks, step, MASK_FILE)
        if self._head:
            search.save_head()
        dev = search.log_dev_losses(step)
        return [{**search.result(masks, step, seconds, dev), "changed": self._changed(masks)}]

    def _changed(self, masks: Masks) -> float:
        """The share of mask entries that differ from the first mask."""
        entries = sum(mask.numel() for mask in masks.values())
        differing = [(tk.unpack_mask(self._first_bits[name], mask.shape) ^ mask).sum() for name, mask in masks.items()]
        return int(torch.stack(differing).sum()) / entries


def start(
    search: Search,
    first_masks: Masks,
    head: Mapping[str, torch.nn.Parameter],
    overwrite: bool = True,
    importance: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, MaskedModule], tk.MaskAdamW, LRScheduler]:
    """Put masks on the student, freeze all but their scores and the parameters of `head`, and compile if asked to.

    Args:
        search: its student is changed in place.
        first_masks: the masks to begin with.
        head: what trains besides the scores.
        overwrite: let gradients use the memory of the masked weights where there is one backward pass per step.
        importance: of the weights, which orders their scores; without it the scores have two values.

    Returns:
        The masked modules, see `wrap`; their optimizer, and the schedule of its learning rate.
    """
    model, encoder, options = search.student.model, search.student.encoder, search.options
    _train_only(model, head)
    masked = wrap(encoder, first_masks, options.ranking, pattern_of(options.pattern))
    set_scores(masked, importance or {})
    optimizer = tk.MaskAdamW(
        masked.values(),
        head.values(),
        lr=search.plan.lr,
        max_norm=MAX_GRADIENT_NORM,
        dtype=search.compute.dtype,
        # A layer that is computed again is used twice per step, and has not kept what its GELU read.
        overwrite=overwrite and search.text.parts == 1 and not options.activation_checkpointing,
    )
    # The decoder is frozen like the embedding, so it needs no copy of the weight; in half precision it gets one that
    # autocast would otherwise make in each step.
    weight = encoder.get_input_embeddings().weight.to(search.compute.dtype)
    model.get_output_embeddings().weight = torch.nn.Parameter(weight, requires_grad=False)
    return masked, optimizer, _compile_and_schedule(search, optimizer)


def start_gates(
    search: Search, first_masks: Masks, head: Mapping[str, torch.nn.Parameter], importance: Mapping[str, Tensor]
) -> tuple[dict[str, Gate], GateAdamW, LRScheduler]:
    """Put the gates of a structure on the student, as `start` puts masks on it; the arguments are the same.

    Returns:
        The gates, see `put_gates`; their optimizer, and the schedule of its learning rate.
    """
    model = search.student.model
    _train_only(model, head)
    gates = put_gates(model, first_masks)
    with torch.no_grad():
        for name, values in importance.items():
            gates[name].score.copy_(scores_for(values, gates[name].mask))
    optimizer = GateAdamW(gates.values(), head.values(), lr=search.plan.lr)
    return gates, optimizer, _compile_and_schedule(search, optimizer)


def _train_only(model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)


def _compile_and_schedule(search: Search, optimizer: Optimizer) -> LRScheduler:
    """Compile the encoders if asked to; the schedule of the learning rate."""
    for compiled in [search.student.encoder, search.teacher] if search.options.compile else []:
        if compiled is not None:
            compiled.compile()
    return get_linear_schedule_with_warmup(optimizer, 0, search.plan.schedule_steps)
