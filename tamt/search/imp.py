"""IMP: train the weights on MLM, prune the smallest, put the rest back to where they started, and again (paper 2.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tamt.masks.file import MASK_FILE
from tamt.masks.masking import Masks, packed_masks, sparsity_of, top_masks
from tamt.methods import STAGES
from tamt.objectives import Losses
from tamt.runtime import processes, termination
from tamt.runtime.console import Progress
from tamt.search.search import Search
from tamt.training.loop import NonFiniteError, make_optimizer, restore_training, training_state, training_steps


def iterative_pruning(search: Search) -> list[dict]:
    """Prune 10 % of the whole at step 0 and after every tenth of the schedule, until the sparsity is reached.

    Pruning is by magnitude of the trained weights, local in each matrix; what was pruned stays pruned. After every
    pruning all parameters, the head's too, go back to θ0 bit for bit, and AdamW starts with empty moments; the
    learning rate falls over the whole schedule (paper, Table 1 and B.2). A mask is saved at every pruning.

    Raises:
        NonFiniteError, Terminated: after a checkpoint of the last good state was saved.
    """
    student = search.student
    student.model.requires_grad_(True)
    student.decoder.weight.requires_grad_(False)
    parameters = {name: p for name, p in student.model.named_parameters() if p.requires_grad}
    initial = {name: p.detach().clone() for name, p in parameters.items()}
    weights = search.weights()
    masks: Masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    packed = packed_masks(student.model, masks)  # by which each step cuts the gradients
    optimizer, schedule = make_optimizer(parameters.values(), search.lr, search.schedule_steps, pruned=packed)
    interval = search.schedule_steps // STAGES
    results: list[dict] = []

    def state() -> dict[str, Any]:
        return {
            "trained": {name: p.detach() for name, p in parameters.items()},
            "masks": masks,
            "results": results,
            **training_state(search.accelerator, optimizer, schedule),
        }

    def pack() -> None:
        for (_, bits), (_, renewed) in zip(packed, packed_masks(student.model, masks), strict=True):
            bits.copy_(renewed)  # in place, as a CUDA graph knows their addresses

    def restore(checkpoint: Mapping[str, Any]) -> None:
        nonlocal masks, results
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(checkpoint["trained"][name])
        masks = {name: mask.to(search.accelerator.device) for name, mask in checkpoint["masks"].items()}
        pack()
        results = checkpoint["results"]
        restore_training(checkpoint, search.accelerator, optimizer, schedule)

    done = search.folder.resume(restore)

    def prune(step: int) -> None:
        nonlocal masks
        search.accelerator.scaler.check()
        processes.check_trained(step, parameters.values())
        sparsity = min(search.sparsity, (step // interval + 1) / STAGES)
        masks = prune_and_reset(weights, parameters, initial, masks, sparsity)
        pack()
        optimizer.forget()
        name = MASK_FILE if sparsity == search.sparsity else f"masks/sparsity-{sparsity:g}.safetensors"
        search.save(masks, step, name, sparsity)
        dev = search.dev_losses()
        search.folder.log(step, sparsity=sparsity_of(masks), **{f"dev_{key}": value for key, value in dev.items()})
        row = search.result(masks, step, search.folder.seconds, dev)
        results.append({**row, "mask": str(search.folder.path / name)})

    if done == 0:
        prune(0)
    losses = Losses(search.objective, student)
    steps = training_steps(
        search.accelerator,
        student.model,
        optimizer,
        schedule,
        search.batches(done + 1, search.masking),
        losses,
        done + 1,
        search.steps,
        search.check_every,
        search.cuda_graphs,
    )
    with Progress(search.method, search.steps, done) as progress, termination.deferred():
        try:
            for step, parts in steps:
                if step % search.log_every == 0 or step == search.steps:
                    sparsity = sparsity_of(masks)
                    lr = float(schedule.get_last_lr()[0])
                    search.folder.log(step, **parts, sparsity=sparsity, lr=lr, seconds=search.folder.seconds)
                    progress.update(step, f"loss {parts['loss']:.4f} sparsity {sparsity:.2%}")
                if step % interval == 0:
                    prune(step)
                elif search.evaluation_due(step):
                    dev = search.dev_losses()
                    search.folder.log(step, **{f"dev_{name}": value for name, value in dev.items()})
                if step % search.save_every == 0 and step != search.steps:
                    search.folder.save_checkpoint(step, state())
        except (NonFiniteError, termination.Terminated) as error:
            search.folder.save_checkpoint(error.last_good, state())
            raise
    search.save_head()
    return results


@torch.no_grad()
def prune_and_reset(
    weights: dict[str, Tensor],
    parameters: dict[str, torch.nn.Parameter],
    initial: dict[str, Tensor],
    masks: Masks,
    sparsity: float,
) -> Masks:
    """One pruning: rank by |trained weight|, then put all parameters back to θ0 and cut the pruned ones to zero.

    The reset copies values. The published code, and the code it came from, kept a name for the weights that were
    trained, so theirs reset nothing.

    Args:
        weights: the prunable matrices.
        parameters: everything that trains, the matrices among it.
        initial: a copy of `parameters` at the start, θ0.
        masks: what is kept so far; only that can be kept further.
        sparsity: share of zeros after the pruning, 0 to 1.

    Returns:
        The new masks, exactly `keep_of` ones each.
    """
    magnitudes = {name: weight.abs().masked_fill_(~masks[name], -1) for name, weight in weights.items()}
    pruned = top_masks(magnitudes, sparsity)
    for name, parameter in parameters.items():
        parameter.copy_(initial[name])
    for name, weight in weights.items():
        weight.masked_fill_(~pruned[name], 0)
    return pruned
