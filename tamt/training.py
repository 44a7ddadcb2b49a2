"""The loop that every training shares: search by mask training or IMP, head warm-up, fine-tuning."""

import ctypes
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

from tamt import termination
from tamt.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
MAX_GRADIENT_NORM = 1.0


class NonFiniteError(UserError):
    """The loss became NaN or infinite; nothing was updated with it."""


def make_accelerator(precision: Precision, accumulation: int, seed: int) -> Accelerator:
    """An Accelerator for this machine's device, after seeding every generator with `seed`.

    Raises:
        UserError: fp16 is asked for on a machine without a GPU, or bf16 on a GPU that has none.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU and there is none; use --precision bf16 or fp32")
    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise UserError("this GPU has no bf16 arithmetic; use --precision fp16 or fp32")
    set_seed(seed)
    # Accelerate keeps the precision of the process's first Accelerator; a second command may want another.
    AcceleratorState._reset_state()
    mixed_precision = "no" if precision == "fp32" else precision
    accelerator = Accelerator(mixed_precision=mixed_precision, gradient_accumulation_steps=accumulation)
    if accelerator.device.type == "cpu":
        _keep_freed_memory()
    return accelerator


def _keep_freed_memory() -> None:
    # glibc gives blocks over 32 MiB back to the system when they are freed, so the gradient of the word embedding,
    # 47 MB for MiniLM, was faulted in anew at every step: 44 of 370 ms of a fine-tuning step on 2 cores.
    m_trim_threshold, m_mmap_threshold, one_gigabyte = -1, -3, 1 << 30
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, one_gigabyte)
        mallopt(m_trim_threshold, one_gigabyte)


def make_optimizer(
    parameters: Iterable[Tensor], lr: float, steps: int, weight_decay: float = 0.0
) -> tuple[AdamW, LRScheduler]:
    """AdamW (β 0.9/0.999, ε 1e-8) with a learning rate that falls linearly from `lr` to 0 over `steps`."""
    optimizer = AdamW(list(parameters), lr=lr, weight_decay=weight_decay, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, 0, steps)


def training_state(accelerator: Accelerator, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """What a checkpoint needs to go on exactly, beside what trains: moments, schedule, generators, fp16 loss scale."""
    return {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "generators": generator_states(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
    }


def restore_training(
    checkpoint: Mapping[str, Any], accelerator: Accelerator, optimizer: Optimizer, schedule: LRScheduler
) -> None:
    """Put back what `training_state` saved."""
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    restore_generators(checkpoint["generators"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(checkpoint["scaler"])


def generator_states() -> dict[str, Any]:
    """The states of the global generators of torch, of each GPU, Python and NumPy, as plain values and tensors."""
    numpy = np.random.get_state()
    assert isinstance(numpy, tuple)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (numpy[0], numpy[1].tolist(), *numpy[2:]),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put back what `generator_states` gave; of the GPUs those that are still there."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


def training_steps(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    batches: Iterator[Any],
    loss: Callable[[Any], Mapping[str, Tensor]],
    first: int,
    last: int,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train from optimizer step `first` to `last`, both counted, and yield after each one.

    A step takes `accelerator.gradient_accumulation_steps` batches, clips the gradient norm at 1.0, updates, and moves
    the schedule on. What belongs to a method (thresholds, pruning, logging, evaluation, saving) is done by the caller
    between two steps; leaving the loop early is allowed.

    Args:
        accelerator: see `make_accelerator`; `optimizer` need not be prepared.
        model: set to train mode before every step, so the caller may evaluate in between.
        optimizer: over the parameters that train.
        schedule: of the learning rate, moved on once a step.
        batches: batches on the CPU or already on the device, as many as the steps need.
        loss: gives the parts of a batch's share in the step's loss; `loss` is the one that is minimised. The shares
            of the batches of a step are added up.
        first: number of the first step, from 1.
        last: number of the last step.

    Yields:
        The step's number and each part of the loss.

    Raises:
        NonFiniteError: before anything was updated with the loss.
    """
    accumulation = accelerator.gradient_accumulation_steps
    scaler = accelerator.scaler
    for step in range(first, last + 1):
        termination.check(step - 1)
        model.train()
        sums: dict[str, float] = {}
        for _ in range(accumulation):
            with accelerator.autocast():
                parts = loss(next(batches))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            if not math.isfinite(sums["loss"]):
                optimizer.zero_grad()
                raise NonFiniteError(_non_finite("loss", sums["loss"], step))
            (scaler.scale(parts["loss"]) if scaler else parts["loss"]).backward()
        if scaler:
            scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        if not scaler and not math.isfinite(norm):
            optimizer.zero_grad()
            raise NonFiniteError(_non_finite("norm of the gradient", norm.item(), step))
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step, sums


def _non_finite(what: str, value: float, step: int) -> str:
    return (
        f"the {what} became {value} at step {step}, so the run stopped there and the last good checkpoint is kept; "
        "start again with a lower --lr or with --precision fp32"
    )
