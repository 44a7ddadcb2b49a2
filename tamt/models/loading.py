"""Pre-trained models from a hub, a local folder or the demo, checked before anything uses them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from tamt.data import assets as demo
from tamt.masks.file import MASK_FILE
from tamt.masks.masking import POOLER, prunable_modules
from tamt.masks.prune_format import is_pruned, merge
from tamt.masks.sparse_file import SPARSE_FILE, load_sparse_state
from tamt.runtime.console import say
from tamt.runtime.errors import UserError, did_you_mean
from tamt.runtime.tensor_files import read_weights
from tamt.runtime.untrusted import check_pulled

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
REMEDY = "give a folder that save_pretrained wrote or a hub name such as bert-base-uncased"


def resolve(name: str) -> str:
    """The folder or hub name behind `name`, which may be one of the models of `tamt.data.assets`."""
    return str(demo.model_folder(name)) if name in demo.MODELS else name


def is_sparse(name: str) -> bool:
    """Whether `name` is a folder with a sparse file, as `tamt export --format sparse` writes it."""
    return (Path(resolve(name)) / SPARSE_FILE).is_file()


def load_encoder(name: str) -> tuple[PreTrainedModel, set[str]]:
    """The model `name` without a head, fp32, and the names of what the checkpoint lacks and is random: the pooler, say.

    Raises:
        UserError: the model cannot be loaded, or has no prunable matrix.
    """
    encoder, missing = load_model(AutoModel, name)
    prunable_modules(encoder)
    return encoder, missing


def load_as_saved(name: str, state: dict[str, Tensor] | None = None) -> PreTrainedModel:
    """The model `name`, fp32, in the class that its configuration names, with whatever numbers it holds.

    Tensors that the checkpoint lacks are random, which is reported.

    Args:
        name: hub name or folder.
        state: tensors to load instead of the checkpoint's.

    Raises:
        UserError: the model cannot be loaded, or transformers has no such class.
    """
    (kind, *_) = load_config(name).architectures or ["nameless model"]
    factory = getattr(transformers, kind, None)
    if not isinstance(factory, type) or not issubclass(factory, PreTrainedModel) or factory is PreTrainedModel:
        raise UserError(f"the model {name!r} is a {kind[:100]}, which transformers does not have; {REMEDY}")
    model, missing = load_model(factory, name, finite=False, state=state)
    if missing:
        say(f"the checkpoint {name} lacks {len(missing)} tensors, {min(missing)} the first, which are random now")
    return model


def load_pooler(name: str) -> Tensor:
    """The weight of the pooler of the model `name`, [width, width]. Raises UserError if it has none."""
    encoder, missing = load_encoder(name)
    pooler = prunable_modules(encoder, pooler=True).get(POOLER)
    if pooler is None or f"{POOLER}.weight" in missing:
        what = "model" if pooler is None else "checkpoint"
        raise UserError(f"the {what} {name!r} has no trained pooler ({POOLER}) to prune; leave the pooler out")
    return pooler.weight.detach()


def load_model(
    factory: Any,
    name: str,
    fresh_head: bool = False,
    finite: bool = True,
    state: dict[str, Tensor] | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, set[str]]:
    """A model, fp32, and the names of what the checkpoint lacks, in the head or the pooler, which is random.

    Args:
        factory: one of transformers' `AutoModel`s, or a class of models.
        name: hub name or folder, or "demo".
        fresh_head: the head is not the checkpoint's, whose own may have another shape.
        finite: refuse NaN and infinity.
        state: tensors to load instead of the checkpoint's.
        options: of the configuration.

    Raises:
        UserError: the model cannot be loaded, or the checkpoint does not fill its encoder with numbers of the right
            shape.
    """
    # Always fp32: transformers would keep the precision of the checkpoint, and mixed precision needs fp32 weights.
    # Different shapes are checked below, because transformers' message names an option that the user did not give.
    how = {"output_loading_info": True, "dtype": torch.float32, "ignore_mismatched_sizes": True, **options}
    if state is None and is_sparse(name):
        state = load_sparse_state(Path(resolve(name)) / SPARSE_FILE)
    if state is not None:
        factory = _OfState(factory, state)
    model, info = load(factory, name, "model", **how)
    if is_pruned(info["unexpected_keys"]):
        model, info = load(_OfState(factory, _merged_state(name)), name, "model", **how)
    # A configuration may ask for tuples, and for outputs that nothing here reads and that fused attention lacks.
    model.config.return_dict, model.config.output_attentions, model.config.output_hidden_states = True, False, False
    encoder = encoder_keys(model)
    _check_shapes([key for key in info["mismatched_keys"] if not fresh_head or key[0] in encoder], encoder, name)
    _check_complete(encoder, info["missing_keys"], info["unexpected_keys"], name)
    _report_left_out(model, info["unexpected_keys"], name)
    if finite:
        _check_finite(model, name)
    return model, set(info["missing_keys"])


def load(factory: Any, name: str, what: str, **options: Any) -> Any:
    """The result of `factory.from_pretrained` for `name`; whatever it raises becomes a UserError."""
    source = resolve(name)
    path = Path(source)
    if not path.exists() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):  # no hub name
        raise UserError(f"the {what} {name!r} is no folder that is there; {REMEDY}")
    _check_no_run(path)
    try:
        return factory.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # nearly anything: of the hub, the files, the configuration and its model
        check_pulled_folder(name)
        raise UserError(_reason(error, name, what)) from error


def _check_no_run(folder: Path) -> None:
    """Check that a folder with a model is not that of a run, which holds a mask, or has its model one folder down."""
    if (folder / "config.json").is_file():
        return
    if (folder / MASK_FILE).is_file():
        raise UserError(f"{folder} holds a mask and no model; give it as --mask, and its search's model as --model")
    if (folder / "model" / "config.json").is_file():
        raise UserError(f"{folder} is the folder of a run; give the model in it, {folder / 'model'}")


@dataclass
class _OfState:
    """Makes models as one of transformers' `AutoModel`s, or a class of models, does, but from this state dict."""

    factory: Any
    state: dict[str, Tensor]

    def from_pretrained(self, source: str, trust_remote_code: bool, dtype: torch.dtype, **options: Any) -> Any:
        config, how = AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, return_unused_kwargs=True, **options
        )
        kind = self.factory
        if not issubclass(kind, PreTrainedModel):
            with torch.device("meta"):
                kind = type(kind.from_config(config, trust_remote_code=trust_remote_code))
        return kind.from_pretrained(None, config=config, state_dict=self.state, dtype=dtype, **how)


def _merged_state(name: str) -> dict[str, Tensor]:
    """The state dict of a model pruned by torch.nn.utils.prune, its masks applied. Raises UserError, see `merge`."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        raise UserError(
            f"the checkpoint {name!r} is one of torch.nn.utils.prune, which is read from a folder only; fetch it with "
            "hf download and give its folder"
        )
    return merge(read_weights(folder), f"the checkpoint {name!r}")


def dense_state(name: str) -> dict[str, Tensor]:
    """The tensors in the folder of the model `name` as they are in a dense checkpoint, whatever form they are saved in.

    Args:
        name: folder of a dense model, of one in a sparse file, or of one that torch.nn.utils.prune has pruned; or
            "demo" or "demo-base".

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    folder = Path(resolve(name))
    if not folder.is_dir():
        raise UserError(f"the model {name!r} is no folder that is there; fetch it with hf download and give its folder")
    if is_sparse(name):
        return load_sparse_state(folder / SPARSE_FILE)
    state = read_weights(folder)
    return merge(state, f"the checkpoint {name!r}") if is_pruned(state) else state


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of the model `name`. Raises UserError if it cannot be loaded."""
    config: PreTrainedConfig = load(AutoConfig, name, "configuration")
    return config


def _reason(error: Exception, name: str, what: str) -> str:
    """One sentence on why a model or tokenizer could not be loaded."""
    text = str(error).strip()
    if isinstance(error, UnpicklingError):
        return (
            f"the {what} {name!r} has a pytorch_model.bin that holds more than tensors, and nothing in it is executed; "
            "give it as model.safetensors"
        )
    if kind := re.search(r"configuration class <class '.*?(\w+)Config'>", text):
        lacks = {
            "AutoModelForMaskedLM": "and no masked language model, so it has no prunable matrix for us",
            "AutoModelForSequenceClassification": "and transformers has no classifier of that kind",
            "AutoModelForQuestionAnswering": "and transformers has no model of that kind that answers questions",
        }
        lack = next((lack for auto, lack in lacks.items() if auto in text), "and no text encoder")
        return f"the model {name!r} is a {kind.group(1)} {lack}; choose an encoder of the BERT family"
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    reason = first.rstrip(".:")
    folder = Path(resolve(name))
    if not folder.exists():
        what = "model" if what == "configuration" else what
        remedy = REMEDY if "/" in name else did_you_mean(name, demo.MODELS, REMEDY)
        return f"the {what} {name!r} is no folder, nor can it be fetched from the hub ({reason}); {remedy}"
    if what == "tokenizer" and not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        return (
            f"the folder {name!r} holds no tokenizer, none of {', '.join(TOKENIZER_FILES)}; save the tokenizer that "
            "the model was trained with beside it"
        )
    return f"the {what} in {name!r} cannot be read ({reason}); {REMEDY}"


def check_pulled_folder(name: str) -> None:
    """Check that no file of a folder is a Git LFS pointer. Raises UserError, naming the first."""
    folder = Path(resolve(name))
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        check_pulled(file)


def encoder_keys(model: PreTrainedModel) -> set[str]:
    """The names in the state of `model` that belong to its encoder."""
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    return {f"{prefix}{key}" for key in model.base_model.state_dict()}


def _check_shapes(differing: Sequence[tuple[str, Any, Any]], encoder: set[str], name: str) -> None:
    """Check that no tensor has another shape in the checkpoint than in the model; those of the encoder are named."""
    if differing:
        key, held, wanted = min(differing, key=lambda shapes: (shapes[0] not in encoder, shapes[0]))
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise UserError(
            f"the checkpoint {name!r} holds {key} of shape {list(held)} where its config.json asks for "
            f"{list(wanted)}{more}; restore the config.json that was saved with it"
        )


def _check_complete(encoder: set[str], missing: set[str], unexpected: set[str], name: str) -> None:
    """Check that a checkpoint has its whole encoder, except perhaps the pooler."""
    lacking = sorted(key for key in encoder & missing if "pooler" not in key)
    if not lacking:
        return
    prefixed = next((key for key in sorted(unexpected) if key.endswith(f".{lacking[0]}")), None)
    remedy = "give a complete checkpoint"
    if prefixed:
        prefix = prefixed.removesuffix(lacking[0])
        remedy = f"its names begin with {prefix!r}, as a wrapped model's do, so save it again without this prefix"
    raise UserError(
        f"the checkpoint {name!r} lacks {len(lacking)} tensors of its encoder, {lacking[0]} the first; {remedy}"
    )


def _report_left_out(model: PreTrainedModel, unexpected: set[str], name: str) -> None:
    """Report tensors of the encoder that the checkpoint has but its configuration does not."""
    parts = tuple(f"{part}." for part, _ in model.base_model.named_children())
    prefix = f"{model.base_model_prefix}."
    left_out = sorted(key for key in unexpected if key.removeprefix(prefix).startswith(parts))
    if left_out:
        say(
            f"the checkpoint {name} has {len(left_out)} tensors that its config.json leaves no place for, and they are "
            f"left out: {left_out[0]} is the first"
        )


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Check that all weights are numbers. Raises UserError, naming the first that are not."""
    for key, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"the checkpoint {name!r} holds NaN or infinity in {key}; give a checkpoint that was saved before its "
                "training diverged, or fetch it again"
            )
