"""`tamt export`: a subnetwork before fine-tuning as a plain model that transformers opens without this package."""

import shutil

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tamt.masks.file import load_masks
from tamt.masks.masking import apply_masks, prunable_weights, sparsity_of
from tamt.masks.prune_format import split
from tamt.models.loading import load_encoder, load_masked_language_model, load_tokenizer
from tamt.options.base import command
from tamt.options.export import ExportOptions
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import sync_tree, telling


@command(ExportOptions)
def export(options: ExportOptions) -> dict:
    """Run `tamt export`."""
    model, output, prune = options.model, options.output, options.format == "prune"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"the output {output} is not empty and nothing in it is overwritten; give a new --output")
    masks, info = load_masks(options.mask)
    encoder, missing = load_encoder(model)
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
    if prune:
        pruned = originals.keys() & masks.keys()
        state = split(state, *({f"{prefix}{name}": kind[name] for name in pruned} for kind in (originals, masks)))
    if not with_head:
        say("no MLM head is written, as the checkpoint has none, or one that is not known here")
    # Beside the output under another name, and renamed when it is whole.
    output = output.resolve()  # "." has no name
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with telling(output):
        if prune:  # under the names of the modules, which transformers changes for some models
            exported.config.architectures = [type(exported).__name__]
            exported.config.save_pretrained(fresh)
            save_file(state, fresh / "model.safetensors", {"format": "pt"})
        else:
            exported.save_pretrained(fresh, state_dict=state)
        tokenizer.save_pretrained(fresh)
        sync_tree(fresh)
        if output.exists():  # filled and not replaced, as somebody's shell may stand in it
            for file in fresh.iterdir():
                file.rename(output / file.name)
            fresh.rmdir()
        else:
            fresh.rename(output)
    opened = "transformers' AutoModel or as the" if not prune else "load_state_dict or as the"
    say(f"the subnetwork is in {output}; open it with {opened} --model of a command")
    result = {
        "model": model,
        "method": info.method,
        "sparsity": round(sparsity_of(masks), 6),
        "mask": str(options.mask),
        "mlm_head": with_head,
        "output": str(output),
    }
    return {"results": [result]}


def _under_head(model: PreTrainedModel, encoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model with its MLM head to save: its own, with those of the masked `encoder` in their place.

    The pooler is saved too, which a model with an MLM head lacks but a classifier begins with.
    """
    model.config.tie_word_embeddings = False
    # Cloned: of tensors that share memory, such as the two names of the output bias, only one would be saved.
    return {name: tensor.clone() for name, tensor in (model.state_dict() | encoder).items()}
