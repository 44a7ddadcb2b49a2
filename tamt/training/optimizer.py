"""AdamW as every training of weights uses it, and what optimizers have in common."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

import tamt_kernels as tk
from tamt.masks.gates import Gate, renew_gates
from tamt_kernels.masked_weight import sums_of_rows

MAX_GRADIENT_NORM = 1.0


class ClippedAdamW(AdamW):
    """torch's fused AdamW with the step of `tk.MaskAdamW`: it clips, skips steps that are not finite, and never waits.

    Weights that a mask has set to zero stay exactly zero: their gradient is cleared, so that AdamW's moments stay 0,
    and 0 decayed or updated by 0 is 0. Zeroing the weights after each step instead would count their gradients in the
    norm that is clipped.
    """

    def __init__(self, parameters: Iterable[Tensor], pruned: Iterable[tuple[Tensor, Tensor]] = (), **how: Any) -> None:
        """`pruned`: weights among the parameters, each with its mask as `tk.pack_mask` packs it; `how`: for AdamW."""
        super().__init__(list(parameters), fused=True, **how)
        self._pruned = list(pruned)

    @torch.no_grad()
    def step(self, closure: None = None, *, scale: Tensor) -> Tensor:  # type: ignore[override]
        """Take a step with gradients that are `scale` times too large, 0-dim; return their norm, divided by `scale`."""
        pruned = [(weight.grad, packed) for weight, packed in self._pruned if weight.grad is not None]
        tk.prune_([grad for grad, _ in pruned], [packed for _, packed in pruned])
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) / scale
        # The fused kernel divides by `grad_scale`, and does nothing if `found_inf` is 1. A separate pass to scale
        # BERT-base's gradients took 10 of 95 ms on 2 cores.
        self.grad_scale = scale / (MAX_GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0)
        self.found_inf = (~norm.isfinite()).float()
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate.float() if isinstance(rate, Tensor) else rate  # the only tensor that it takes on a GPU
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return norm

    @torch.no_grad()
    def forget(self) -> None:
        """Set moments and step counts to 0, in place."""
        for state in self.state.values():
            for tensor in state.values():
                tensor.zero_()


class GateAdamW(ClippedAdamW):
    """AdamW for the scores of gates and other parameters, without weight decay; each step renews the masks.

    The scores of a mask share one second moment, the mean of theirs, so that a group moves as far as its gradient says.
    With moments of their own all groups would move equally fast, those that hardly matter at random.
    """

    def __init__(self, gates: Iterable[Gate], others: Iterable[Tensor], lr: float) -> None:
        """`others`: what trains beside the scores."""
        self._gates = list(gates)
        super().__init__([*(gate.score for gate in self._gates), *others], lr=lr, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: None = None, *, scale: Tensor) -> Tensor:  # type: ignore[override]
        """Take a step, see `ClippedAdamW.step`."""
        norm = super().step(scale=scale)
        for gate in self._gates:
            second = self.state[gate.score]["exp_avg_sq"]
            second.copy_(second.mean())
        renew_gates(self._gates)
        return norm


def make_optimizer(
    parameters: Iterable[Tensor],
    lr: float,
    steps: int,
    weight_decay: float = 0.0,
    pruned: Iterable[tuple[Tensor, Tensor]] = (),
    warmup: float = 0.0,
) -> tuple[ClippedAdamW, LRScheduler]:
    """AdamW (β 0.9/0.999, ε 1e-8) with a learning rate that falls linearly from `lr` to 0 over `steps`.

    In a share `warmup` of the steps, at first, it rises linearly from 0 to `lr` instead. `pruned` are weights among the
    parameters with their packed masks, where they are zero and stay so.
    """
    optimizer = ClippedAdamW(parameters, pruned, lr=lr, weight_decay=weight_decay)
    return optimizer, get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)


def trained_by(optimizer: Optimizer) -> list[Tensor]:
    """All tensors that an optimizer trains, and the thresholds that follow from scores; 32 bits per entry."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, tk.MaskAdamW):
        with_thresholds = [module for module in optimizer.modules if module.pattern is None]
        tensors += [threshold for module in with_thresholds for threshold in (module.value, module.cut)]
    return tensors


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that a backward pass left for an optimizer: of the masked weights, not the scores.

    They are added up in place over the processes, each of which looks up other rows of an embedding, so sparse ones are
    made dense.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, tk.MaskAdamW):
        trained = [masked.tensor for masked in optimizer.masked_weights] + trained
    for tensor in trained:
        if tensor.grad is not None and tensor.grad.is_sparse:
            tensor.grad = sums_of_rows(tensor.grad).to(tensor.dtype).to_dense()
    return [tensor.grad for tensor in trained if tensor.grad is not None]
