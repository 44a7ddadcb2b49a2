"""TAMT: scores are trained through the straight-through estimator, and rank the weights into the mask (paper 3.4)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

import tamt_kernels as tk
from tamt.masks.file import MASK_FILE
from tamt.masks.masking import (
    MaskedModule,
    Masks,
    masks_of,
    sparsity_of,
    wrap,
)
from tamt.objectives import Losses
from tamt.runtime import processes, termination
from tamt.runtime.choices import Ranking
from tamt.runtime.console import Progress
from tamt.search.scores import set_scores, starting_point
from tamt.search.search import Search
from tamt.terms import needs_head
from tamt.training.loop import (
    MAX_GRADIENT_NORM,
    NonFiniteError,
    compute_dtype,
    restore_training,
    trained_by,
    training_state,
    training_steps,
)


def train_masks(search: Search) -> list[dict]:
    """Train all masks of a model together towards a pre-training objective.

    Every weight is frozen; the scores train, and with losses of logits the MLM head. After every `threshold_every`
    steps (1; in the published code 100-1000), and before a mask is saved, each mask is renewed to exactly its `keep`
    ones; in between the masks stay as they are. The ranking is by the score (eq. 3) or by its absolute value (the text
    of 3.4.2).

    Args:
        search: see `Search`; its teacher must be the dense twin of the student.

    Raises:
        UserError: see `tamt.search.scores.starting_point` and `tamt.objectives.Losses`.
        NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
    """
    student = search.student
    trains_head, threshold_every = needs_head(search.objective), search.threshold_every
    first_masks, importance = starting_point(search)
    head = student.head_parameters() if trains_head else {}
    renew = threshold_every == 1
    masked, optimizer, schedule = start(search, first_masks, head, search.ranking, renew, importance)
    losses = Losses(search.objective, student, search.teacher)  # takes the head as it is before it trains
    # All that is kept of masks: as bits the first, 14 MB for BERT-base in place of 0.1 GB, and the present ones only
    # where they do not follow from the scores.
    first_bits = {name: tk.pack_mask(mask) for name, mask in first_masks.items()}
    masks = {} if renew else first_masks
    del first_masks, importance
    trained = {**{f"score {name}": module.score for name, module in masked.items()}, **head}

    def state() -> dict[str, Any]:
        return {
            "trained": {name: tensor.detach() for name, tensor in trained.items()},
            "masks": masks,
            **training_state(search.accelerator, optimizer, schedule),
        }

    def restore(checkpoint: Mapping[str, Any]) -> None:
        nonlocal masks
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(checkpoint["trained"][name])
        tk.update_masks(masked.values())
        restore_training(checkpoint, search.accelerator, optimizer, schedule)
        masks = {name: mask.to(search.accelerator.device) for name, mask in checkpoint["masks"].items()}
        for name, mask in masks.items():  # where thresholds are not renewed at each step, the scores have moved on
            masked_weight = masked[name].masked
            assert masked_weight is not None
            masked_weight.tensor.detach().copy_(masked_weight.weight).masked_fill_(~mask, 0)

    done = search.folder.resume(restore)
    batches = search.batches(done + 1, search.masking if trains_head else None)
    steps = training_steps(
        search.accelerator,
        student.model,
        optimizer,
        schedule,
        batches,
        losses,
        done + 1,
        search.steps,
        search.check_every,
        search.cuda_graphs,
        renew=renew,
    )
    with Progress(search.method, search.steps, done) as progress, termination.deferred():
        try:
            for step, parts in steps:
                last = step == search.steps
                if not renew and (step % threshold_every == 0 or last or step in search.save_at):
                    tk.update_masks(masked.values())
                    masks = masks_of(masked)
                if step % search.log_every == 0 or last:
                    present = masks_of(masked) if renew else masks
                    figures = {"sparsity": sparsity_of(present), "changed": _changed(first_bits, present)}
                    del present
                    lr = float(schedule.get_last_lr()[0])
                    search.folder.log(step, **parts, **figures, lr=lr, seconds=search.folder.seconds)
                    progress.update(step, _figures(parts["loss"], **figures))
                if step in search.save_at:
                    search.save(masks_of(masked), step, f"masks/step-{step}.safetensors")
                if search.evaluation_due(step):
                    dev = search.dev_losses()
                    search.folder.log(step, **{f"dev_{name}": value for name, value in dev.items()})
                if step % search.save_every == 0 and not last:
                    search.folder.save_checkpoint(step, state())
        except (NonFiniteError, termination.Terminated) as error:
            search.folder.save_checkpoint(error.last_good, state())
            raise
    processes.check_trained(search.steps, trained_by(optimizer))
    masks = masks_of(masked)
    seconds = search.folder.seconds
    search.save(masks, search.steps, MASK_FILE)
    if head:
        search.save_head()
    dev = search.dev_losses()
    search.folder.log(search.steps, **{f"dev_{name}": value for name, value in dev.items()})
    return [{**search.result(masks, search.steps, seconds, dev), "changed": _changed(first_bits, masks)}]


def start(
    search: Search,
    first_masks: Masks,
    head: Mapping[str, torch.nn.Parameter],
    ranking: Ranking = "signed",
    overwrite: bool = True,
    importance: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, MaskedModule], tk.MaskAdamW, LRScheduler]:
    """Put masks on the student, set all but their scores and the parameters of `head` aside, and compile if asked to.

    Scores follow the importance of the weights, or have two values where none is given (`tamt.search.scores`). With
    `overwrite`, and one backward pass a step, gradients take the memory of the masked weights.

    Returns:
        The masked modules, see `wrap`; their optimizer, and the schedule of its learning rate.
    """
    model, encoder = search.student.model, search.student.encoder
    model.requires_grad_(False)
    for parameter in head.values():
        parameter.requires_grad_(True)
    masked = wrap(encoder, first_masks, ranking)
    set_scores(masked, importance or {})
    dtype = compute_dtype(search.accelerator)
    optimizer = tk.MaskAdamW(
        masked.values(),
        head.values(),
        lr=search.lr,
        max_norm=MAX_GRADIENT_NORM,
        dtype=dtype,
        # A layer that is computed again is used twice a step, and has not kept what its GELU read.
        overwrite=overwrite
        and search.accelerator.gradient_accumulation_steps == 1
        and not search.activation_checkpointing,
    )
    # Frozen like the embedding, the decoder needs no copy of it now, but in half precision one that autocast would
    # make at every step.
    weight = encoder.get_input_embeddings().weight.to(dtype)
    model.get_output_embeddings().weight = torch.nn.Parameter(weight, requires_grad=False)
    for compiled in [encoder, search.teacher] if search.compile else []:
        if compiled is not None:
            compiled.compile()
    return masked, optimizer, get_linear_schedule_with_warmup(optimizer, 0, search.schedule_steps)


def _changed(first_bits: Mapping[str, Tensor], masks: Masks) -> float:
    """The share of mask entries that differ from the first mask, given packed."""
    entries = sum(mask.numel() for mask in masks.values())
    differing = [(tk.unpack_mask(first_bits[name], mask.shape) ^ mask).sum() for name, mask in masks.items()]
    return int(torch.stack(differing).sum()) / entries


def _figures(loss: float, sparsity: float, changed: float) -> str:
    return f"loss {loss:.4f} sparsity {sparsity:.2%} changed {changed:.2%}"
