"""`tamt export`: a subnetwork as a Hugging Face model, dense or as a sparse file."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tamt.finetuning.saved import run_of
from tamt.masks.file import load_masks
from tamt.masks.masking import apply_masks, prunable_weights, sparsity_of
from tamt.masks.origin import say_if_of_another
from tamt.masks.prune_format import split
from tamt.masks.sparse_file import SPARSE_FILE, save_sparse
from tamt.models.language_model import load_masked_language_model
from tamt.models.loading import dense_state, is_sparse, load_config, load_encoder
from tamt.models.shrink import shrink, zeros_for
from tamt.models.tokenizer import load_tokenizer
from tamt.options.base import command
from tamt.options.export import ExportOptions
from tamt.runtime.choices import Values
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import sync_model_folder, telling
from tamt.runtime.tensor_files import read_weights
from tamt_kernels.sparse import least_sparsity

HOW_TO_OPEN = {
    "dense": "transformers' AutoModel or as the --model of a command",
    "sparse": "tamt.load_sparse or as the --model of a command",
    "prune": "load_state_dict or as the --model of a command",
}


@dataclass
class _Exported:
    """What is written.

    Attributes:
        row: what the results say of it.
        state: its tensors by name.
        model: what saves the tensors under the names of a checkpoint; None if they have these names.
    """

    row: dict[str, Any]
    state: dict[str, Tensor]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel | None = None


@command(ExportOptions)
def export(options: ExportOptions) -> dict:
    """Run `tamt export`."""
    output = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"the output {output} is not empty and nothing in it is overwritten; give a new --output")
    if options.mask is None:
        exported = _whole_model(options)
    else:
        exported = (_shrunk if options.shrink else _subnetwork)(options, options.mask)
    # Beside the output under another name, and renamed when it is whole.
    output = output.resolve()  # "." has no name
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with telling(output):
        try:
            row = _write(options, exported, fresh)
            sync_model_folder(fresh)
            if output.exists():  # filled and not replaced, as somebody's shell may stand in it
                for file in fresh.iterdir():
                    file.rename(output / file.name)
            else:
                fresh.rename(output)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    say(f"the model is in {output}; open it with {HOW_TO_OPEN[options.format]}")
    return {"results": [{**row, "output": str(output)}]}


def _subnetwork(options: ExportOptions, mask: Path) -> _Exported:
    """m ⊙ θ0, with its MLM head."""
    model, prune = options.model, options.format == "prune"
    masks, info = load_masks(mask)
    encoder, missing = load_encoder(model)
    say_if_of_another(masks, info.model, encoder)
    if info.structure is not None:
        masks = zeros_for(encoder, masks)
    weights = prunable_weights(encoder, pooler=True)
    originals = {name: weight.detach().clone() for name, weight in weights.items() if prune}
    apply_masks(encoder, masks)
    tokenizer = load_tokenizer(model, masking=False)
    trained = {name: tensor for name, tensor in encoder.state_dict().items() if name not in missing}
    heads = load_masked_language_model(model, need_head=False)
    with_head = not heads.fresh_head
    exported, prefix = (heads.model, f"{heads.model.base_model_prefix}.") if with_head else (encoder, "")
    state = {f"{prefix}{name}": tensor for name, tensor in trained.items()}
    if with_head:
        state = _under_head(heads.model, state)
    else:
        say("no MLM head is written, as the checkpoint has none, or one that is not known here")
    if prune:  # under the names of the modules, which transformers changes for some models
        pruned = originals.keys() & masks.keys()
        state = split(state, *({f"{prefix}{name}": kind[name] for name in pruned} for kind in (originals, masks)))
        exported.config.architectures = [type(exported).__name__]
    row = {
        "model": model,
        "method": info.method,
        "sparsity": round(sparsity_of(masks), 6),
        "mask": str(mask),
        "mlm_head": with_head,
    }
    return _Exported(row, state, exported.config, tokenizer, None if prune else exported)


def _shrunk(options: ExportOptions, mask: Path) -> _Exported:
    """The model without the groups that a structured mask prunes, with its MLM head, and its pooler for classifiers."""
    model = options.model
    masks, info = load_masks(mask)
    if info.structure is None:
        raise UserError(f"the mask {mask} prunes single weights, which leave no smaller model; leave --shrink out")
    encoder, missing = load_encoder(model)
    say_if_of_another(masks, info.model, encoder)
    exported = shrink(encoder, masks)
    state = {name: tensor for name, tensor in exported.state_dict().items() if name not in missing}
    heads = load_masked_language_model(model, need_head=False)
    if not heads.fresh_head:
        exported = shrink(heads.model, masks)
        prefix = exported.base_model_prefix
        state = {f"{prefix}.{name}": tensor for name, tensor in state.items()} | exported.state_dict()
    row = {
        "model": model,
        "method": info.method,
        "structure": info.structure,
        "mask": str(mask),
        "mlm_head": not heads.fresh_head,
        "parameters": exported.num_parameters(),
        "dense_parameters": (encoder if heads.fresh_head else heads.model).num_parameters(),
    }
    return _Exported(row, state, exported.config, load_tokenizer(model, masking=False), exported)


def _whole_model(options: ExportOptions) -> _Exported:
    """A model as it is saved, with the zeros that it has."""
    source, _ = run_of(options.model)
    if options.format == "dense" and not is_sparse(source):
        raise UserError(
            f"--mask is missing, as {options.model} is no sparse model that can be written densely; give the mask of a "
            "subnetwork"
        )
    state = dense_state(source)
    config, tokenizer = load_config(source), load_tokenizer(source, masking=False)
    if options.format == "dense":
        config.dtype = "float32"
    return _Exported({"model": options.model}, state, config, tokenizer)


def _write(options: ExportOptions, exported: _Exported, fresh: Path) -> dict[str, Any]:
    """Write a model into the folder `fresh`. Returns its row of results."""
    row, state = exported.row, exported.state
    if exported.model is not None:
        exported.model.save_pretrained(fresh, state_dict=state)
    else:
        exported.config.save_pretrained(fresh)
    if options.format == "sparse":
        if exported.model is not None:  # the names of a checkpoint are known now
            state = read_weights(fresh)
            for file in fresh.glob("model*.safetensors*"):
                file.unlink()
        row |= _write_sparse(state, fresh / SPARSE_FILE, options.values or "float32")
    elif exported.model is None:
        save_file(state, fresh / "model.safetensors", {"format": "pt"})
    exported.tokenizer.save_pretrained(fresh)
    return row


def _write_sparse(state: dict[str, Tensor], path: Path, values: Values) -> dict[str, Any]:
    """Write a sparse file and say what it holds, and whether it is worth it. Returns what a row says of it."""
    sizes = save_sparse(path, state, values)
    say(
        f"{sizes.sparse} of {sizes.matrices} matrices are stored sparse: {sizes.file_bytes / 1e6:.1f} MB, and dense in "
        f"float32 {sizes.dense_bytes / 1e6:.1f} MB"
    )
    if sizes.sparsity < (least := least_sparsity(torch.float32)):
        say(
            f"warning: {sizes.sparsity:.1%} of the entries of all matrices are zeros, and below about {least:.0%} "
            "sparse products are slower than dense ones"
        )
    return {
        "zeros": round(sizes.sparsity, 6),
        "values": values,
        "sparse_matrices": sizes.sparse,
        "megabytes": round(sizes.file_bytes / 1e6, 3),
        "dense_megabytes": round(sizes.dense_bytes / 1e6, 3),
    }


def _under_head(model: PreTrainedModel, encoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model with its MLM head to save: its own, with those of the masked `encoder` in their place.

    The pooler is saved too, which a model with an MLM head lacks but a classifier begins with.
    """
    model.config.tie_word_embeddings = False
    # Cloned: of tensors that share memory, such as the two names of the output bias, only one would be saved.
    return {name: tensor.clone() for name, tensor in (model.state_dict() | encoder).items()}
