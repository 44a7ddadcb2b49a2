"""Models that run sparse: their matrices hold kept weights alone, and products skip the zeros."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.sparse_file import SPARSE_FILE
from tamt.models.loading import is_sparse, load_as_saved
from tamt.runtime.console import say
from tamt.runtime.errors import UserError


def load_sparse(folder: str | Path, values: torch.dtype = torch.float32) -> PreTrainedModel:
    """Open a model that `tamt export --format sparse` wrote, to run on a CPU.

    Example:
        >>> import tamt
        >>> from transformers import pipeline
        >>> model = tamt.load_sparse("sst2-sparse")  # doctest: +SKIP
        >>> pipeline("text-classification", model=model, tokenizer="sst2-sparse")("Good.")  # doctest: +SKIP

    Args:
        folder: with sparse.safetensors and config.json.
        values: type in which kept weights are held and multiplied: float32, exact, or bfloat16, faster where the CPU
            has instructions for it.

    Returns:
        The model of the class that its configuration names, in eval mode, float32 but for the kept weights.

    Raises:
        UserError: the folder holds no sparse file, or a file in it is damaged.
    """
    name = str(folder)
    if not is_sparse(name):
        raise UserError(f"the folder {name} holds no {SPARSE_FILE}; write one with tamt export --format sparse")
    model = load_as_saved(name)
    run_sparse(model, name, values)
    return model


def save_as_dense(model: PreTrainedModel, folder: Path) -> None:
    """Save a model in Hugging Face format, its sparse matrices as dense ones with zeros."""
    sparse = {
        name: module.weight
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, tk.SparseLinear | tk.SparseEmbedding)
    }
    state = model.state_dict()
    for name, weight in sparse.items():
        del state[f"{name}.mask"], state[f"{name}.values"]
        state[f"{name}.weight"] = weight.to_dense().detach()
    model.save_pretrained(folder, state_dict=state if sparse else None)


def run_sparse(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Let the matrices of a model that hold zeros enough run sparse, in place. Says what runs.

    Args:
        model: on any device; only on a CPU there are sparse products.
        name: what a message calls it.
        dtype: that in which the model computes; kept weights are held in bfloat16 if it is that, else in float32.
    """
    device = next(model.parameters()).device.type
    if device != "cpu":
        say(f"{name} runs dense, as sparse products are for CPUs and it is on {device}")
        return
    values = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    sparse, matrices = sparsify(model, values)
    say(f"{name}: {sparse} of {matrices} matrices run sparse in {str(values).removeprefix('torch.')}, the others dense")


def sparsify(model: nn.Module, values: torch.dtype | None = None) -> tuple[int, int]:
    """Let the matrices of a model that hold zeros enough run sparse, in place, by `tk.sparsify`.

    Returns:
        The numbers of layers that run sparse, and of all that could.
    """
    matrices = sum(isinstance(module, nn.Linear | nn.Embedding) for module in model.modules())
    tk.sparsify(model, values=values)
    sparse = sum(isinstance(module, tk.SparseLinear | tk.SparseEmbedding) for module in model.modules())
    return sparse, matrices
