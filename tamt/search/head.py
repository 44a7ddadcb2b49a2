"""Head warm-up: a fresh MLM head is trained alone, on the dense frozen encoder, before anything is searched."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tamt.console import Progress, say
from tamt.objectives import encode, mlm_loss
from tamt.search.setting import Search
from tamt.training import make_optimizer, training_steps

LEARNING_RATE = 1e-3
"""Of the warm-up. The search's 5e-5 would leave a random 384 × 384 transform nearly as it is in 200 steps."""


def warm_up_head(search: Search, steps: int) -> None:
    """Train the fresh MLM head of the student for `steps` steps; its encoder stays as it is, with dropout off."""
    student = search.student
    say(f"{search.model} has no MLM head: a fresh one is trained alone for {steps} steps first (--head-warmup-steps)")
    student.model.requires_grad_(False)
    head = student.head_parameters()
    for parameter in head.values():
        parameter.requires_grad_(True)
    optimizer, schedule = make_optimizer(head.values(), LEARNING_RATE, steps)

    def loss(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        student.encoder.eval()
        with torch.no_grad():
            hidden, _ = encode(student.encoder, batch, hidden_states=False)
        return {"loss": mlm_loss(student, hidden, batch)}

    batches = search.batches(1, search.masking)
    with Progress("head warm-up", steps) as progress:
        for step, parts in training_steps(
            search.accelerator, student.model, optimizer, schedule, batches, loss, 1, steps, search.check_every
        ):
            if step % search.log_every == 0 or step == steps:
                search.folder.log(step, head_warmup=parts["loss"])
                progress.update(step, f"loss {parts['loss']:.4f}")
    student.fresh_head = False
