"""Fine-tuning that stores, multiplies and trains the kept weights only, on a CPU."""

import os
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.masking import masked_weights
from tamt.options.finetune import FinetuneOptions
from tamt.runtime import processes
from tamt.runtime.choices import Sparse
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute
from tamt.training.run_folder import started_with
from tamt_kernels.backend.timing import times_by_turns

VARIABLE = "TAMT_SPARSE"
"""Environment variable with the meaning of "auto", on or off, for comparable runs on different machines."""
GAIN = 0.9
"""Sparse products are chosen if they take at most this share of the time of dense ones; less may be noise."""
MOST_TOKENS = 1024
"""Tokens to measure with, at most: more change the ratio of the times no further."""
REPEATS = 3


class Choice(NamedTuple):
    """ "on" or "off", and the sentence that says why where the run chose it itself."""

    sparse: Sparse
    why: str = ""


def choose_sparse(
    options: FinetuneOptions, compute: Compute, model: PreTrainedModel, masks: Mapping[str, Tensor], tokens: int
) -> Choice:
    """Whether a fine-tuning trains kept weights only: what is asked for, or for "auto" what is faster here.

    On --resume "auto" is what the run began with. Process 0 decides for all processes.

    Args:
        options: of the run.
        compute: its device and precision.
        model: the dense model, pruned.
        masks: of the subnetwork; none for the full model.
        tokens: per batch.

    Raises:
        UserError: TAMT_SPARSE is neither on nor off.
    """
    if options.sparse == "off" or not masks:
        return Choice("off")
    if not _can(compute):
        on_cpu = compute.device.type == "cpu"  # on a GPU nobody expects it
        return Choice("off", f"sparse off, as it is for fp32 and this run computes in {compute.precision}" * on_cpu)
    if options.sparse == "on":
        return Choice("on")
    return processes.by_first(lambda: _begun(options) or _named() or _measured(model, masks, tokens))


def check_sparse(asked: Sparse, compute: Compute) -> None:
    """Check that a run can train sparse if it is asked to. Raises UserError if not."""
    if asked == "on" and not _can(compute):
        on_cpu = compute.device.type == "cpu"
        where, remedy = (" on a CPU", "give --precision fp32") if on_cpu else (" on a GPU", "leave it out")
        raise UserError(
            f"--sparse on is for fp32 on a CPU, and this run computes in {compute.precision}{where}; {remedy}"
        )


def _can(compute: Compute) -> bool:
    return compute.device.type == "cpu" and compute.precision == "fp32"


def _begun(options: FinetuneOptions) -> Choice | None:
    """What the run in the output folder began with, on --resume."""
    begun = started_with(options.output, "sparse") if options.resume else None
    return Choice(begun) if begun in ("on", "off") else None


def _named() -> Choice | None:
    """What TAMT_SPARSE names."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    if named not in ("on", "off"):
        raise UserError(f"{VARIABLE} is {named!r} but must be on or off, or unset")
    return Choice("on" if named == "on" else "off", f"sparse {named}, as {VARIABLE} says")


def _measured(model: PreTrainedModel, masks: Mapping[str, Tensor], tokens: int) -> Choice:
    dense, sparse = measure(model, masks, min(tokens, MOST_TOKENS))
    chosen: Sparse = "on" if sparse <= GAIN * dense else "off"
    compared = f"are {dense / sparse:.1f} × faster" if sparse < dense else f"are {sparse / dense:.1f} × slower"
    if chosen == "off" and sparse < dense:
        compared = f"gain less than {1 - GAIN:.0%}"
    return Choice(chosen, f"sparse {chosen}, as sparse products {compared} here (--sparse on or off decides)")


def measure(model: PreTrainedModel, masks: Mapping[str, Tensor], tokens: int) -> tuple[float, float]:
    """Seconds that the products of the masked linear layers take, forward and backward, dense and sparse.

    One layer of each shape is measured, by the CPU time of one thread, which other programs hardly change.
    """
    layers: dict[torch.Size, list[tuple[nn.Linear, Tensor]]] = {}
    names = {weight: name for name, weight in masked_weights(model, masks).items()}
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight in names:
            layers.setdefault(module.weight.shape, []).append((module, masks[names[module.weight]]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dense = sparse = 0.0
        for alike in layers.values():
            linear, mask = alike[0]
            times = _times(linear, tk.SparseLinear.from_linear(linear, mask), tokens)
            dense, sparse = dense + len(alike) * times[0], sparse + len(alike) * times[1]
    finally:
        torch.set_num_threads(threads)
    return dense, sparse


def _times(dense: nn.Linear, sparse: nn.Module, tokens: int) -> tuple[float, float]:
    """The shortest of a few times of both layers."""
    x = torch.ones(tokens, dense.in_features, requires_grad=True)
    grad = torch.ones(tokens, dense.out_features)

    def run(layer: nn.Module) -> None:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)

    times = times_by_turns({"dense": partial(run, dense), "sparse": partial(run, sparse)}, REPEATS)
    return min(times["dense"]), min(times["sparse"])


def train_kept_only(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Let the masked matrices of a model store and train the kept weights only, in place.

    Returns:
        The masked weights that stay dense, as a module of another kind than `nn.Linear` or `nn.Embedding` uses them,
        with their packed masks, as `packed_masks` gives them.
    """
    kinds = (nn.Linear, tk.Linear, nn.Embedding)
    others = {p for module in model.modules() if type(module) not in kinds for p in module.parameters(recurse=False)}
    names = {weight: name for name, weight in model.named_parameters()}
    weights = masked_weights(model, masks)
    sparse = {names[weight]: masks[name] for name, weight in weights.items() if weight not in others}
    dense = [(weight, tk.pack_mask(masks[name])) for name, weight in weights.items() if weight in others]
    tk.sparsify(model, sparse, at_least=0)
    return dense
