"""Models that run sparse: their matrices hold kept weights alone, and products skip the zeros."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.sparse_file import SPARSE_FILE
from tamt.models.loading import is_sparse, load_as_saved
from tamt.runtime.console import say
from tamt.runtime.errors import UserError

BREAK_EVEN = 0.3
"""Share of zeros from which on sparse products are faster than dense ones on a CPU, for 32 tokens or more."""


def load_sparse(folder: str | Path) -> PreTrainedModel:
    """Open a model that `tamt export --format sparse` wrote, to run on a CPU.

    Example:
        >>> import tamt
        >>> from transformers import pipeline
        >>> model = tamt.load_sparse("sst2-sparse")  # doctest: +SKIP
        >>> pipeline("text-classification", model=model, tokenizer="sst2-sparse")("Good.")  # doctest: +SKIP

    Args:
        folder: with sparse.safetensors and config.json.

    Returns:
        The model of the class that its configuration names, in eval mode, float32.

    Raises:
        UserError: the folder holds no sparse file, or a file in it is damaged.
    """
    name = str(folder)
    if not is_sparse(name):
        raise UserError(f"the folder {name} holds no {SPARSE_FILE}; write one with tamt export --format sparse")
    model = load_as_saved(name)
    run_sparse(model, name)
    return model


def run_sparse(model: nn.Module, name: str) -> None:
    """Let the matrices of a model that hold zeros enough run sparse, in place; what runs is said.

    Args:
        model: on any device; only on a CPU there are sparse products.
        name: what a message calls it.
    """
    device = next(model.parameters()).device.type
    if device != "cpu":
        say(f"{name} runs dense, as sparse products are for CPUs and it is on {device}")
        return
    matrices = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    sparsify = getattr(tk, "sparsify", None)
    if sparsify is None:
        say(f"{name} runs dense: these kernels have no sparse products")
        return
    sparsify(model)
    left = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    say(f"{name}: {len(matrices) - len(left)} of {len(matrices)} matrices run sparse, the others dense")
