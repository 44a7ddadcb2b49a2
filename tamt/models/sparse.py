"""Models that run sparse: their matrices hold kept weights alone, and products skip the zeros."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
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
        The model of the class that its configuration names, in eval mode, float32 but for the kept weights. It is to
        run, and not to save: `tamt export --format dense` writes an ordinary model.

    Raises:
        UserError: the folder holds no sparse file, a file in it is damaged, or `values` is another type.
    """
    name = str(folder)
    if values not in VALUE_TYPES:
        raise UserError(f"load_sparse: values is {values} but must be torch.float32 or torch.bfloat16")
    if not is_sparse(name):
        raise UserError(f"the folder {name} holds no {SPARSE_FILE}; write one with tamt export --format sparse")
    return _open(name, values)


def _open(name: str, values: torch.dtype) -> PreTrainedModel:
    state, matrices = read_sparse(Path(name) / SPARSE_FILE)
    loaded = _load_with_places(name, state, matrices)
    if loaded is None:
        del state, matrices
        model = load_as_saved(name)
        run_sparse(model, name, values)
        return model
    model, matrix_of = loaded
    last = {key: parameter for parameter, key in matrix_of.items()}
    layers = {module.weight for module in model.modules() if type(module) in (nn.Linear, nn.Embedding)}
    for parameter, key in matrix_of.items():
        matrix, weight = matrices[key], model.get_parameter(parameter)
        if weight in layers and matrix.sparsity >= least_sparsity(values):
            set_sparse(model, parameter, tk.SparseWeight.from_kept(matrix.mask, matrix.values.to(values)))
        else:
            weight.data = matrix.to_dense()
        if last[key] == parameter:
            del matrices[key]
    _say_what_runs(model, name, values)
    return model


def _load_with_places(
    name: str, state: dict[str, Tensor], matrices: Mapping[str, SparseMatrix]
) -> tuple[PreTrainedModel, dict[str, str]] | None:
    """A model with a number instead of each sparse matrix, so that no dense model takes memory.

    Equal matrices have the same number, as transformers ties them. It keeps the view of a number, by whose memory
    parameters are found, whatever their names.

    Returns:
        The model, and the names of the matrices by those of the parameters; None if the model has no place for some.
    """
    same: dict[str, str] = {}  # the first matrix equal to each
    for key, matrix in matrices.items():
        same[key] = next((each for each in set(same.values()) if matrices[each].equals(matrix)), key)
    places = {key: torch.tensor(float(i)) for i, key in enumerate(dict.fromkeys(same.values()))}
    views = {key: places[same[key]].expand(matrix.shape) for key, matrix in matrices.items()}
    model = load_as_saved(name, state | views)
    at = {place.untyped_storage().data_ptr(): key for key, place in places.items()}
    storages = {key: weight.untyped_storage().data_ptr() for key, weight in model.named_parameters()}
    matrix_of = {parameter: at[storage] for parameter, storage in storages.items() if storage in at}
    return (model, matrix_of) if set(matrix_of.values()) == places.keys() else None


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
    type(model).save_pretrained(model, folder, state_dict=state if sparse else None)  # its own is one that refuses


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
