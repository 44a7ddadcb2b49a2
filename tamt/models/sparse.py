"""Models that run sparse: their matrices hold kept weights alone, and products skip the zeros."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.sparse_file import SPARSE_FILE, SparseMatrix, read_sparse
from tamt.models.loading import is_sparse, load_as_saved
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt_kernels.ops.pack_sparse import VALUE_TYPES
from tamt_kernels.sparse import least_sparsity, set_sparse


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
        UserError: the folder holds no sparse file, a file in it is damaged, or `values` is another type.
    """
    name = str(folder)
    if values not in VALUE_TYPES:
        raise UserError(f"load_sparse: values is {values} but must be torch.float32 or torch.bfloat16")
    if not is_sparse(name):
        raise UserError(f"the folder {name} holds no {SPARSE_FILE}; write one with tamt export --format sparse")
    state, matrices = read_sparse(Path(name) / SPARSE_FILE)
    # A number in place of each sparse matrix, the same for equal ones, which transformers may tie. It keeps the views,
    # so that no dense model takes memory.
    numbers = _numbers(list(matrices.values()))
    places = {number: torch.tensor(float(number)) for number in numbers}
    of_number = dict(zip(numbers, matrices.values(), strict=True))
    views = {key: places[n].expand(matrix.shape) for n, (key, matrix) in zip(numbers, matrices.items(), strict=True)}
    model = load_as_saved(name, state | views)
    of_storage = {place.untyped_storage().data_ptr(): number for number, place in places.items()}
    storages = {key: weight.untyped_storage().data_ptr() for key, weight in model.named_parameters()}
    found = {key: of_storage[storage] for key, storage in storages.items() if storage in of_storage}
    if set(found.values()) < of_number.keys():  # the class of the model has no place for some
        del model, state, views, matrices, of_number
        model = load_as_saved(name)
        run_sparse(model, name, values)
        return model
    del matrices
    last = {number: key for key, number in found.items()}
    for key, number in found.items():
        _set(model, key, of_number[number], values)
        if last[number] == key:
            del of_number[number]
    _say_what_runs(model, name, values)
    return model


def _numbers(matrices: Sequence[SparseMatrix]) -> list[int]:
    """A number for each matrix: that of the first one equal to it."""
    numbers: list[int] = []
    for i, matrix in enumerate(matrices):
        numbers.append(next((n for n in sorted(set(numbers)) if matrices[n].equals(matrix)), i))
    return numbers


def _set(model: nn.Module, name: str, matrix: SparseMatrix, values: torch.dtype) -> None:
    """Make a matrix the weight of this name: sparse if it has zeros enough and belongs to layers that can be."""
    weight = model.get_parameter(name)
    layers = {module.weight for module in model.modules() if type(module) in (nn.Linear, nn.Embedding)}
    if weight in layers and matrix.sparsity >= least_sparsity(values):
        set_sparse(model, name, tk.SparseWeight.from_kept(matrix.mask, matrix.values.to(values)))
    else:
        weight.data = matrix.to_dense()


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
    tk.sparsify(model, values=values)
    _say_what_runs(model, name, values)


def _say_what_runs(model: nn.Module, name: str, values: torch.dtype) -> None:
    sparse, matrices = running_sparse(model)
    say(f"{name}: {sparse} of {matrices} matrices run sparse in {str(values).removeprefix('torch.')}, the others dense")


def running_sparse(model: nn.Module) -> tuple[int, int]:
    """The number of layers that run sparse, and of all layers that have a matrix."""
    sparse = sum(isinstance(module, tk.SparseLinear | tk.SparseEmbedding) for module in model.modules())
    return sparse, sparse + sum(isinstance(module, nn.Linear | nn.Embedding) for module in model.modules())
