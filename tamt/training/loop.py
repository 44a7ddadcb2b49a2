"""The loop that every training shares: search by mask training or IMP, head warm-up, fine-tuning.

No step waits for the device. Whether the loss and the gradient were finite is known there alone, so there it is decided
that a step changes nothing (`LossScale`), and told where the run waits anyway: where a loss is read, and before
anything is saved or evaluated.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

import tamt_kernels as tk
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.runtime import processes, termination
from tamt.runtime.choices import CHECK_EVERY, Precision
from tamt.runtime.console import say
from tamt.runtime.errors import UserError, check_choice
from tamt.training.precision import DTYPES, choose_precision, report_precision
from tamt.training.prefetch import prefetch
from tamt.training.run_folder import AUTO, processes_of_run
from tamt.training.step_graph import Outcome, StepGraph
from tamt_kernels.backend import onednn, product_library

RunOptions = TypeVar("RunOptions", TrainOptions, FinetuneOptions)

MAX_GRADIENT_NORM = 1.0
LARGEST_LOSS = 1e5
"""Above it a loss has exploded: chance is 10 for the cross-entropy of 30,000 tokens, 1 for KD, 8 for STS-B."""
FIRST_LOSS_SCALE = 2.0**16
GROWTH_INTERVAL = 2000


class NonFiniteError(UserError):
    """The loss or the gradient became NaN or infinite, or the loss exploded, at the step after `last_good`; nothing was
    updated from there on.

    What trains and the optimizer are as they were after step `last_good`, even if the error is told some steps later.
    """

    def __init__(self, message: str, last_good: int) -> None:
        super().__init__(message)
        self.last_good = last_good


class HalfPrecisionError(UserError):
    """A model does not run in half precision, but does in fp32. `why` says it without a remedy."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; give --precision fp32")
        self.why = why


class LossScale:
    """What the loss is multiplied by, and what becomes of a bad step; all of it on the device.

    Bad is a step whose loss or gradient is not finite, or whose loss is above `largest`. In fp16 the scale starts
    at 2¹⁶, doubles after 2,000 good steps in a row, and halves at a bad one, which is left out. In fp32 and bf16 it is
    1. Below 1 the run has failed, in fp32 and bf16 at its first bad step: from then on every step is left out, so that
    the last good state is still there when `check` tells of it. It takes the place of `accelerator.scaler`, as torch's
    GradScaler waits for the device at every step. All of it stays where it is in memory: a CUDA graph reads it there.

    Attributes:
        scale: what the loss is multiplied by, 0-dim.
        largest: above it a loss has exploded; to be set before the first step by a task whose losses are large.
    """

    def __init__(self, device: torch.device, dynamic: bool) -> None:
        self.largest = LARGEST_LOSS
        self.scale = torch.full((), FIRST_LOSS_SCALE if dynamic else 1.0, device=device)
        self._dynamic = dynamic
        self._good = torch.zeros((), device=device)  # good steps since the scale changed
        self._last = torch.zeros(3, device=device)  # the last step before the failure: number, loss, norm

    def of_step(self, loss: Tensor) -> Tensor:
        """What to divide the gradient of a step with this loss by; NaN, which leaves the step out, if it is bad."""
        return torch.where((loss.abs() <= self.largest) & (self.scale >= 1), self.scale, torch.nan)

    def update(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Take notice of a step: its number, its loss and the norm of its gradient, 0-dim."""
        going, good = self.scale >= 1, (loss.abs() <= self.largest) & norm.isfinite()
        self._last.copy_(torch.where(going, torch.stack([torch.full_like(norm, step), loss, norm]), self._last))
        self._good.copy_(torch.where(good, self._good + 1, 0))
        grown = good & (self._good >= GROWTH_INTERVAL) & self._dynamic
        self._good.masked_fill_(grown, 0)
        self.scale.mul_(torch.where(good, torch.where(grown, 2.0, 1.0), torch.where(going, 0.5, 1.0)))

    def check(self) -> None:
        """Wait for the device. Raises NonFiniteError, once, if the run has failed."""
        scale, step, loss, norm = torch.cat([self.scale[None], self._last]).tolist()
        if scale >= 1:
            return
        self.scale.fill_(1)
        what, value = ("norm of the gradient", norm) if abs(loss) <= self.largest else ("loss", loss)
        raise NonFiniteError(
            f"the {what} became {value:g} at step {step:.0f}, so the run stopped there and the last good checkpoint is "
            "kept; start again with a lower --lr or with --precision fp32",
            int(step) - 1,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The scale and the good steps since it changed."""
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self.scale.copy_(state["scale"])
        self._good.copy_(state["good"])


class ClippedAdamW(AdamW):
    """torch's fused AdamW with the step of `tk.MaskAdamW`: clips, leaves out what is not finite, waits for nothing.

    Weights that are zero where a mask prunes stay exactly zero: the gradient there is taken away, so that AdamW's
    moments stay 0, and 0 decayed or updated by 0 is 0. Zeroing the weights after each step instead would leave
    gradients that change nothing in the norm that is clipped.
    """

    def __init__(self, parameters: Iterable[Tensor], pruned: Iterable[tuple[Tensor, Tensor]] = (), **how: Any) -> None:
        """`pruned`: weights among the parameters, each with its mask as `tk.pack_mask` packs it; `how` is AdamW's."""
        super().__init__(list(parameters), fused=True, **how)
        self._pruned = list(pruned)

    @torch.no_grad()
    def step(self, closure: None = None, *, scale: Tensor) -> Tensor:  # type: ignore[override]
        """Take a step with gradients that are `scale` times too large, 0-dim; return their norm as it should be."""
        pruned = [(weight.grad, packed) for weight, packed in self._pruned if weight.grad is not None]
        tk.prune_([grad for grad, _ in pruned], [packed for _, packed in pruned])
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) / scale
        # The fused kernel divides by the one, and does nothing where the other is 1. A pass of its own that scaled
        # BERT-base's gradients took 10 of 95 ms on 2 cores.
        self.grad_scale = scale / (MAX_GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0)
        self.found_inf = (~norm.isfinite()).float()
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate.float() if isinstance(rate, Tensor) else rate  # on a GPU it takes no other tensor
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return norm

    @torch.no_grad()
    def forget(self) -> None:
        """Begin anew: moments and counts of steps are 0, where they are in memory."""
        for state in self.state.values():
            for tensor in state.values():
                tensor.zero_()


class Figures(Mapping[str, float]):
    """The parts of a step's loss, 0-dim tensors, as numbers that are waited for when they are read.

    Reading one raises NonFiniteError if the run has failed.
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


def as_begun(options: RunOptions) -> RunOptions:
    """The options of a run with its precision and its processes per step: on --resume those that it began with."""
    asked = partial(processes_of_run, options.output, options.processes_of_step, options.resume)
    precision = choose_precision(options.precision, options.output, options.resume)
    return replace(options, processes_of_step=processes.by_first(asked), precision=precision)


def make_accelerator(precision: Precision, accumulation: int, seed: int, spare_memory: float = 0.0) -> Accelerator:
    """An Accelerator for this machine's device, after seeding every generator with `seed`.

    `spare_memory` is the `spare` of `tk.reuse_freed_memory`, which manages the memory of tensors on a CPU from now on.

    Raises:
        UserError: the precision is unknown; fp16 is asked for on a machine without a GPU, bf16 on a GPU that has none,
            or TAMT_PRODUCTS for what this torch cannot do; see also `processes.join`.
    """
    check_choice("precision", precision, DTYPES)
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU and there is none; use --precision bf16 or fp32")
    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise UserError("this GPU has no bf16 arithmetic; use --precision fp16 or fp32")
    processes.join()
    set_seed(seed)
    # Accelerate keeps the precision of the process's first Accelerator; a second command may want another.
    AcceleratorState._reset_state()
    mixed_precision = "no" if precision == "fp32" else precision
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=accumulation,
        cpu=processes.count() > 1 and not torch.cuda.is_available(),  # without it accelerate takes no CPUs together
    )
    if accelerator.num_processes != processes.count():
        raise UserError(
            f"{accelerator.num_processes} processes were started, but not by torchrun or accelerate launch; use these"
        )
    accelerator.scaler = LossScale(accelerator.device, precision == "fp16")
    if accelerator.device.type == "cpu":
        # The gradient of the word embedding, 47 MB for MiniLM, was faulted in anew at every step: 44 of 370 ms of a
        # fine-tuning step on 2 cores. Told to keep what is freed, glibc held 0.3 GB of holes for BERT-base.
        tk.reuse_freed_memory(spare_memory)
        if precision == "fp32":
            _choose_products({})
    return accelerator


def report_arithmetic(accelerator: Accelerator, asked: Precision) -> None:
    """Log once what a run computes with: the precision that "auto" chose, and the library of its float32 products.

    Call it when all that can be refused was loaded, so that a mistake is answered by one line.
    """
    mixed = accelerator.mixed_precision
    report_precision("fp32" if mixed == "no" else mixed, asked)
    if not _products_matter(accelerator):
        return
    others = [name for name, row in product_library.chosen().items() if set(row) != {"eager"}]
    if others:
        say(f"oneDNN computes {', '.join(others)} in float32, as it is faster here (TAMT_PRODUCTS=eager turns it off)")
    elif problem := onednn.problem():
        say(f"torch's own library computes all float32 products, because oneDNN cannot: {problem}")


def _products_matter(accelerator: Accelerator) -> bool:
    """Whether a run computes float32 products on a CPU, for which there is a choice of library."""
    return accelerator.device.type == "cpu" and compute_dtype(accelerator) == torch.float32


def _choose_products(table: Mapping[str, Sequence[str]]) -> None:
    """Choose what computes float32 products on this CPU: by `table`, which a checkpoint has, or by measurement."""
    try:
        missing = product_library.choose(table)
    except RuntimeError as error:  # TAMT_PRODUCTS asks for what is not there
        raise UserError(str(error)) from error
    if missing:
        say(f"this torch cannot compute {', '.join(missing)} as the run did before, so results differ by rounding")


@torch.no_grad()
def check_runs(model: torch.nn.Module, name: str, accelerator: Accelerator, forward: Callable[[], object]) -> None:
    """Check that a model takes its input in the precision asked for, by a forward pass with dropout off.

    Args:
        model: set to eval mode.
        name: what a message calls it.
        accelerator: gives the precision.
        forward: runs the model on some of the input.

    Raises:
        UserError: it does not, with what transformers or torch say.
        HalfPrecisionError: it does in fp32.
    """
    model.eval()
    try:
        with accelerator.autocast():
            forward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any model's own code
        reason = " ".join(str(error).split())[:200].rstrip(".")
        try:
            forward()
        except Exception:
            raise UserError(
                f"{name} ({type(model).__name__}) cannot read this input ({type(error).__name__}: {reason}); choose "
                "another model, or a --max-length and tokenizer that it was made for"
            ) from error
        raise HalfPrecisionError(
            f"{name} ({type(model).__name__}) does not run in {accelerator.mixed_precision} ({reason})"
        ) from error


def choose_fp32(asked: Precision, error: HalfPrecisionError) -> None:
    """Report that "auto" means fp32 for a model. Raises `error` where half precision was asked for by its name."""
    if asked != AUTO:
        raise error
    say(f"precision fp32, as {error.why} (updates are always float32)")


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """The type that autocast computes in."""
    precision = accelerator.mixed_precision
    return DTYPES["fp32" if precision == "no" else precision]


def make_optimizer(
    parameters: Iterable[Tensor],
    lr: float,
    steps: int,
    weight_decay: float = 0.0,
    pruned: Iterable[tuple[Tensor, Tensor]] = (),
) -> tuple[ClippedAdamW, LRScheduler]:
    """AdamW (β 0.9/0.999, ε 1e-8) with a learning rate that falls linearly from `lr` to 0 over `steps`.

    `pruned` are weights among the parameters with their packed masks, where they are zero and stay so.
    """
    optimizer = ClippedAdamW(parameters, pruned, lr=lr, weight_decay=weight_decay)
    return optimizer, get_linear_schedule_with_warmup(optimizer, 0, steps)


def training_state(accelerator: Accelerator, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """What a checkpoint needs to go on exactly, beside what trains: moments, schedule, generators, loss scale.

    The generators are those of all processes, which all must call this.

    Raises:
        NonFiniteError: a step before was bad; the second call then gives the state of the last good one.
        DifferError: what trains is not the same in all processes.
    """
    accelerator.scaler.check()
    processes.check_trained(schedule.last_epoch, trained_by(optimizer))
    return {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "generators": processes.gather(generator_states()),
        "loss_scale": accelerator.scaler.state_dict(),
        "products": product_library.chosen() if _products_matter(accelerator) else {},
    }


def restore_training(
    checkpoint: Mapping[str, Any], accelerator: Accelerator, optimizer: Optimizer, schedule: LRScheduler
) -> None:
    """Put back what `training_state` saved, and the schedule to the checkpoint's `step`.

    In as many processes as saved it, each goes on with its own generators; else with new ones that follow from those of
    process 0.
    """
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    # A bad step is told later, and until then the schedule has moved on.
    schedule.last_epoch = checkpoint["step"] - 1
    schedule.step()
    generators = checkpoint["generators"]
    if len(generators) == processes.count():
        restore_generators(generators[processes.rank()])
    else:
        restore_generators(generators[0])
        processes.own_dropout()
    accelerator.scaler.load_state_dict(checkpoint["loss_scale"])
    if checkpoint["products"]:
        _choose_products(checkpoint["products"])


def trained_by(optimizer: Optimizer) -> list[Tensor]:
    """All tensors that an optimizer trains, and the thresholds that follow from scores; 32 bits an entry."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, tk.MaskAdamW):
        tensors += [threshold for module in optimizer.modules for threshold in (module.value, module.cut)]
    return tensors


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that a backward pass left for an optimizer: of the masked weights, not the scores.

    To be added up in place over the processes, each of which looked other rows of an embedding up: sparse ones are made
    whole.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, tk.MaskAdamW):
        trained = [masked.tensor for masked in optimizer.masked_weights] + trained
    for tensor in trained:
        if tensor.grad is not None and tensor.grad.is_sparse:
            tensor.grad = tensor.grad.to_dense()
    return [tensor.grad for tensor in trained if tensor.grad is not None]


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
    optimizer: ClippedAdamW | tk.MaskAdamW,
    schedule: LRScheduler,
    batches: Iterator[Any],
    loss: Callable[[Any], Mapping[str, Tensor]],
    first: int,
    last: int,
    check_every: int = CHECK_EVERY,
    cuda_graphs: bool = False,
    **options: Any,
) -> Iterator[tuple[int, Figures]]:
    """Train from optimizer step `first` to `last`, both counted, and yield after each one.

    A step takes `accelerator.gradient_accumulation_steps` batches, clips the gradient norm at 1.0, updates, and moves
    the schedule on. What belongs to a method (thresholds, pruning, logging, evaluation, saving) is done by the caller
    between two steps; leaving the loop early is allowed.

    Several processes each take their own batches of a step, and gradients and losses are added up over them, so that
    all know the same and update alike.

    A bad step, see `LossScale`, changes nothing, nor does any after it (in fp16 not before the loss scale has fallen
    below 1). NonFiniteError tells of it where a loss is read, by `training_state`, and by `accelerator.scaler.check()`,
    which a caller calls before it saves or evaluates anything. So what is saved then is the state of the last good
    step, whose number the error knows.

    Args:
        accelerator: see `make_accelerator`; `optimizer` need not be prepared.
        model: set to train mode before every step, so the caller may evaluate in between.
        optimizer: over what trains.
        schedule: of the learning rate, moved on once a step.
        batches: batches, as many as the steps need; made ahead of time in a thread of their own (`prefetch`).
        loss: gives the parts of a batch's share in the step's loss; `loss` is the one that is minimised. The shares
            of the batches of a step are added up.
        first: number of the first step, from 1.
        last: number of the last step.
        check_every: steps between two checks that all processes hold the same.
        cuda_graphs: start steps from CUDA graphs, see `tamt.training.step_graph`; on a GPU, in one process.
        options: of the optimizer's step.

    Yields:
        The step's number and each part of the loss, which is waited for where it is read.

    Raises:
        LostProcessError, DifferError: see `tamt.runtime.processes`.
    """
    accumulation = accelerator.gradient_accumulation_steps
    scaler = accelerator.scaler

    def take(batches: Iterable[Any]) -> Outcome:
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with accelerator.autocast():
                parts = loss(batch)
            for name, value in parts.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            (parts["loss"] * scaler.scale).backward()
        if processes.count() > 1:
            _add_up(optimizer, sums)
        norm = optimizer.step(scale=scaler.of_step(sums["loss"]), **options)
        optimizer.zero_grad()
        return sums, norm

    step_of = StepGraph(take, optimizer, accelerator.device) if cuda_graphs else take
    count = (last + 1 - first) * accumulation
    with closing(prefetch(islice(batches, count), accelerator.device)) as ready, processes.stepping():
        for step in range(first, last + 1):
            try:
                processes.check_termination(step - 1)
            except termination.Terminated:
                scaler.check()
                raise
            model.train()
            sums, norm = step_of(islice(ready, accumulation))
            scaler.update(step, sums["loss"], norm)
            schedule.step()
            if step % check_every == 0:
                processes.check_trained(step, trained_by(optimizer))
            yield step, Figures(sums, scaler.check)


def _add_up(optimizer: Optimizer, losses: dict[str, Tensor]) -> None:
    """Add gradients and losses up over the processes, in place, once all batches of a step are through."""
    names = list(losses)
    figures = torch.stack([losses[name].float() for name in names])
    processes.add_up([*gradients_of(optimizer), figures])
    losses.update(zip(names, figures.unbind(), strict=True))
