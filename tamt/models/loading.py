"""Pre-trained models and tokenizers, from a hub, a local folder or the demo."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

import tamt_kernels as tk
from tamt.data import assets as demo
from tamt.masks.masking import POOLER, prunable_modules
from tamt.masks.prune_format import is_pruned, merge
from tamt.masks.sparse_file import SPARSE_FILE, load_sparse_state
from tamt.methods import methods_without_head
from tamt.models.dropout import use_fast_dropout
from tamt.models.shared_cast import share_casts
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.tensor_files import read_weights
from tamt.runtime.untrusted import check_pulled

FEWEST_WORDS = 10
"""Words that a tokenizer knows at least. transformers makes one of the special tokens alone where a folder has none."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
UNLIMITED = 1 << 30
"""Tokens that a model reads at most which has no limit."""
REMEDY = "give a folder that save_pretrained wrote or a hub name such as bert-base-uncased"

FINETUNED = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
}
"""What loads a fine-tuned model, by what its class is called."""

logging.set_verbosity_error()  # what a checkpoint lacks is told in our own words
logging.disable_progress_bar()


def resolve(name: str) -> str:
    """The folder or hub name behind `name`, which may be one of the models of `tamt.data.assets`."""
    return str(demo.model_folder(name)) if name in demo.MODELS else name


def is_sparse(name: str) -> bool:
    """Whether `name` is a folder with a sparse file, as `tamt export --format sparse` writes it."""
    return (Path(resolve(name)) / SPARSE_FILE).is_file()


def load_tokenizer(name: str, masking: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of the model `name`; with a mask token where `masking` says that tokens will be masked.

    Raises:
        UserError: it cannot be had, knows no words, lacks the mask token or that of padding, or has ids that the model
            does not know.
    """
    tokenizer = _load(AutoTokenizer, name, "tokenizer")
    known = getattr(load_config(name), "vocab_size", None)
    _check_words(tokenizer, known, name)
    if masking and tokenizer.mask_token_id is None:
        raise UserError(f"the tokenizer of {name} has no mask token; choose an encoder of the BERT family")
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token; set its pad_token and save it anew")
    largest = max(tokenizer.get_vocab().values())
    if known is not None and largest >= known:
        raise UserError(
            f"the tokenizer of {name} has ids up to {largest}, but the model's vocabulary ends at {known - 1}; give "
            "the tokenizer that the model was trained with"
        )
    return tokenizer


def _check_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None, name: str) -> None:
    """Check that a tokenizer knows words: without any, all text is the unknown token, or nothing at all."""
    words = len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens))
    if words < FEWEST_WORDS and (vocabulary is None or words < vocabulary / 2):
        _check_pulled(name)
        raise UserError(
            f"the tokenizer of {name} knows {words} words beside its special tokens where the model knows "
            f"{vocabulary}, as its files ({', '.join(TOKENIZER_FILES)}) are missing or cut; save the tokenizer that "
            "the model was trained with beside it"
        )


@dataclass
class MaskedLanguageModel:
    """An encoder with its MLM head: the head trains, its decoder is the dense frozen word embedding.

    Attributes:
        model: the whole Hugging Face model.
        fresh_head: whether the checkpoint had no MLM head, so that the head is randomly initialised.
    """

    model: PreTrainedModel
    fresh_head: bool

    @property
    def encoder(self) -> PreTrainedModel:
        """The model without its head."""
        return self.model.base_model

    @property
    def decoder(self) -> nn.Linear:
        """The last layer of the head, to the vocabulary."""
        decoder: nn.Linear = self.model.get_output_embeddings()
        return decoder

    def transform(self, hidden: Tensor) -> Tensor:
        """What the decoder reads, [n, its width], for hidden states [n, width] of the last layer."""
        model = self.model
        if hasattr(model, "cls"):  # BERT
            return model.cls.predictions.transform(hidden)
        if hasattr(model, "lm_head"):  # RoBERTa and its kin
            return model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden)))
        if hasattr(model, "vocab_projector"):  # DistilBERT
            return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
        return model.generator_predictions(hidden)  # ELECTRA

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """What of the head trains: transform, LayerNorm and output bias; not the decoder's matrix."""
        inside = {id(parameter) for parameter in self.encoder.parameters()}
        inside.add(id(self.decoder.weight))
        return {name: p for name, p in self.model.named_parameters() if id(p) not in inside}

    def load_head(self, state: dict[str, Tensor], source: Path) -> None:
        """Take the head's parameters from `state`. Raises UserError if names or shapes differ."""
        parameters = self.head_parameters()
        if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in state.items()}:
            raise UserError(
                f"the MLM head {source} is not one of {type(self.model).__name__}; "
                "give the head.safetensors of a run on this model"
            )
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise UserError(f"the MLM head {source} holds NaN or infinity; give the head.safetensors of another run")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])
        self.fresh_head = False


def load_masked_language_model(name: str, need_head: bool = True) -> MaskedLanguageModel:
    """The model `name` with an MLM head, whose decoder is untied: dense and frozen whatever befalls the embedding.

    The decoder is the checkpoint's own. Where that is tied to the word embedding, or missing, it is a copy of the
    embedding. A checkpoint without MLM head gets a fresh one (from torch's global generator: seed it first).

    Args:
        name: hub name or folder, or "demo".
        need_head: whether the head is used. If not, a model whose head is not known here, such as ModernBERT, has a
            `fresh_head`, so that no MLM loss is measured.

    Raises:
        UserError: the model cannot be had, has no prunable matrix or no MLM head that is known here but needed.
    """
    model, missing = _load_model(AutoModelForMaskedLM, name)
    known = _head_is_known(model)
    if not known and need_head:
        raise UserError(
            f"the MLM head of {type(model).__name__} is not known here; choose a BERT, RoBERTa, DistilBERT or ELECTRA "
            f"model, or a method without MLM ({', '.join(methods_without_head())})"
        )
    prunable_modules(model)
    speed_up(model)
    if not known:
        return MaskedLanguageModel(model, fresh_head=True)
    decoder, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    own = {key for key, parameter in model.named_parameters(remove_duplicate=False) if parameter is decoder.weight}
    if decoder.weight is embedding.weight or own & missing:
        decoder.weight = nn.Parameter(embedding.weight.detach().clone())
    decoder.weight.requires_grad_(False)
    heads = MaskedLanguageModel(model, fresh_head=False)
    heads.fresh_head = any(key in missing for key in heads.head_parameters())
    return heads


def _head_is_known(model: PreTrainedModel) -> bool:
    """Whether `MaskedLanguageModel` computes the logits that the model's own MLM head does."""
    head = getattr(model, "cls", None) or getattr(model, "lm_head", None)
    if head is None:  # its layers are the model's own, under names that say what they do
        return hasattr(model, "vocab_projector") or hasattr(model, "generator_lm_head")
    read_as_known = MaskedLanguageModel(model, fresh_head=False)
    hidden = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = read_as_known.decoder(read_as_known.transform(hidden))
            return torch.allclose(logits, head(hidden), rtol=1e-3, atol=1e-4, equal_nan=True)
    except (AttributeError, RuntimeError, TypeError):  # another head under the same name: its layers or widths differ
        return False


def load_classifier(name: str, labels: Sequence[str] | None) -> PreTrainedModel:
    """The model `name`, fp32, under a fresh classification head with one output a label; without labels a regression.

    The head is drawn from torch's global generator (seed it first), even where the checkpoint holds one.

    Raises:
        UserError: the model cannot be had, or has no prunable matrix.
    """
    if labels is None:
        return _load_fresh(AutoModelForSequenceClassification, name, num_labels=1, problem_type="regression")
    return _load_fresh(
        AutoModelForSequenceClassification,
        name,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
    )


def load_question_answerer(name: str) -> PreTrainedModel:
    """The model `name`, fp32, under a fresh head that scores every token as start and end of an answer.

    Raises:
        UserError: see `load_classifier`.
    """
    return _load_fresh(AutoModelForQuestionAnswering, name, num_labels=2)


def load_finetuned(name: str) -> PreTrainedModel:
    """The fine-tuned model `name`, fp32, with its own head, which classifies rows or answers questions.

    Raises:
        UserError: the model cannot be had, or its checkpoint has no such head.
    """
    (kind, *_) = load_config(name).architectures or ["nameless model"]
    factory = next((factory for part, factory in FINETUNED.items() if part in kind), None)
    if factory is None:
        raise UserError(
            f"the model {name!r} is a {kind}, which has no head of a fine-tuned task; give a run folder of tamt "
            "finetune, or a folder with a fine-tuned model"
        )
    model, missing = _load_model(factory, name)
    if missing:
        raise UserError(
            f"the checkpoint {name!r} lacks {min(missing)}, which fine-tuning would have trained; give a model that "
            "was fine-tuned and saved whole"
        )
    speed_up(model)
    return model


def _load_fresh(factory: Any, name: str, **options: Any) -> PreTrainedModel:
    """A model whose head is new, whatever the checkpoint holds."""
    model, missing = _load_model(factory, name, fresh_head=True, **options)
    if any("pooler" in key for key in missing & _encoder_keys(model)):
        say(f"{name} has no trained pooler: a fresh one is drawn, as the head is")
    prunable_modules(model)
    speed_up(model)
    inside = set(model.base_model.modules())
    for module in model.modules():
        if module in inside:
            continue
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return model


def speed_up(model: PreTrainedModel) -> None:
    """Change how fast a model runs, in place, but not what it computes.

    See `tamt.models.dropout`, `tamt.models.shared_cast` and `tk.linear`.
    """
    tk.use_fast_products(model)
    use_fast_dropout(model)
    share_casts(model)


def checkpoint_activations(model: PreTrainedModel, name: str) -> None:
    """Let each layer keep its input alone in training, and compute the rest again in the backward pass.

    This is transformers' own, the way that is not re-entrant. Dropout is drawn anew from the same state of the
    generators, so that losses and gradients are the same to the bit.

    Args:
        model: changed in place.
        name: what a message calls it.

    Raises:
        UserError: transformers cannot do so with this model.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"{name} ({type(model).__name__}) cannot compute its activations again, as transformers has it; leave "
            "--activation-checkpointing out"
        ) from error
    model.disable_input_require_grads()  # of use to the re-entrant way alone, and no copy can be made of its hooks


def load_encoder(name: str) -> tuple[PreTrainedModel, set[str]]:
    """The model `name` without a head, fp32, and what of it (its pooler, say) the checkpoint lacks and is random.

    Raises:
        UserError: the model cannot be had, or has no prunable matrix.
    """
    encoder, missing = _load_model(AutoModel, name)
    prunable_modules(encoder)
    return encoder, missing


def load_as_saved(name: str) -> PreTrainedModel:
    """The model `name`, fp32, in the class that its configuration names, with whatever numbers it holds.

    What the checkpoint lacks of it is random, which is said.

    Raises:
        UserError: the model cannot be had, or transformers has no such class.
    """
    (kind, *_) = load_config(name).architectures or ["nameless model"]
    factory = getattr(transformers, kind, None)
    if not isinstance(factory, type) or not issubclass(factory, PreTrainedModel):
        raise UserError(f"the model {name!r} is a {kind[:100]}, which transformers does not have; {REMEDY}")
    model, missing = _load_model(factory, name, finite=False)
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


def longest_input(model: PreTrainedModel) -> int:
    """How many tokens the model reads at most, special tokens counted; `UNLIMITED` where it has no such limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # positions are relative to each other
        return UNLIMITED
    # RoBERTa and its kin count positions from the padding id on.
    embeddings = getattr(model.base_model, "embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    # XLM calls its word embedding so, whose padding_idx says nothing of positions.
    return positions if offset is None or isinstance(embeddings, nn.Embedding) else positions - offset - 1


def input_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, asked: int | None, default: int
) -> int:
    """How many tokens of a row the model `name` reads, which its tokenizer then knows and is saved with.

    Args:
        model: whose configuration gets the tokenizer's padding id if it has none.
        tokenizer: its `model_max_length` is set.
        name: what a message calls the model.
        asked: the length asked for.
        default: where none is asked for, this length, or the longest input of the model if that is less.

    Raises:
        UserError: the model reads less than is asked for.
    """
    longest = longest_input(model)
    if asked is not None and asked > longest:
        raise UserError(f"--max-length {asked} is more than the {longest} tokens of {name}")
    if model.config.pad_token_id is None:  # by which a decoder's classifier finds the last token of a row
        model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = asked or min(default, longest)
    return tokenizer.model_max_length


def dense_twin(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A second, dense model over the very same parameters: the KD teacher, frozen and in eval mode.

    Take it before masks are put on `model`. The paper's published code left its teacher's dropout on; here it is off.

    Args:
        model: any model.
        dtype: that in which autocast computes. In half precision the twin's linear layers hold copies of this type,
            which autocast would otherwise make of every matrix at every forward.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, memo=dict(shared)).eval()
    for module in twin.modules() if dtype != torch.float32 else ():
        if isinstance(module, nn.Linear):
            for name, parameter in module.named_parameters():
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    return twin


def _load_model(
    factory: Any, name: str, fresh_head: bool = False, finite: bool = True, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """A model, fp32, and the names of what the checkpoint lacks of it and is random: of the head or the pooler.

    Args:
        factory: one of transformers' `AutoModel`s, or a class of models.
        name: hub name or folder, or "demo".
        fresh_head: the head is not the checkpoint's, whose own may have another shape.
        finite: refuse NaN and infinity.
        options: of the configuration.

    Raises:
        UserError: the model cannot be had, or the checkpoint does not fill its encoder with numbers of the right shape.
    """
    # Always fp32: transformers would keep the precision of the checkpoint, and mixed precision wants fp32 weights.
    # Shapes that differ are let pass here and looked at below: transformers would name an option that nobody gave.
    how = {"output_loading_info": True, "dtype": torch.float32, "ignore_mismatched_sizes": True, **options}
    if is_sparse(name):
        factory = _OfState(factory, load_sparse_state(Path(resolve(name)) / SPARSE_FILE))
    model, info = _load(factory, name, "model", **how)
    if is_pruned(info["unexpected_keys"]):
        model, info = _load(_OfState(factory, _merged_state(name)), name, "model", **how)
    # A configuration may ask for tuples, and for outputs that nobody reads here and fused attention has not.
    model.config.return_dict, model.config.output_attentions, model.config.output_hidden_states = True, False, False
    encoder = _encoder_keys(model)
    _check_shapes([each for each in info["mismatched_keys"] if not fresh_head or each[0] in encoder], encoder, name)
    _check_complete(encoder, info["missing_keys"], info["unexpected_keys"], name)
    _say_left_out(model, info["unexpected_keys"], name)
    if finite:
        _check_finite(model, name)
    return model, set(info["missing_keys"])


def _load(factory: Any, name: str, what: str, **options: Any) -> Any:
    """What `factory.from_pretrained` makes of `name`; whatever it raises becomes a UserError."""
    source = resolve(name)
    path = Path(source)
    if not path.exists() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):  # no hub name
        raise UserError(f"the {what} {name!r} is no folder that is there; {REMEDY}")
    try:
        return factory.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # nearly anything: of the hub, the files, the configuration and its model
        _check_pulled(name)
        raise UserError(_reason(error, name, what)) from error


@dataclass
class _OfState:
    """Makes models as one of transformers' `AutoModel`s, or a class of models, does, but of this state dict."""

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
            "huggingface-cli download and give its folder"
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
    """The configuration of the model `name`. Raises UserError if it cannot be had."""
    config: PreTrainedConfig = _load(AutoConfig, name, "configuration")
    return config


def _reason(error: Exception, name: str, what: str) -> str:
    """One sentence that says why a model or tokenizer could not be loaded."""
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
        return f"the {what} {name!r} is no folder, nor can it be fetched from the hub ({reason}); {REMEDY}"
    if what == "tokenizer" and not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        return (
            f"the folder {name!r} holds no tokenizer, none of {', '.join(TOKENIZER_FILES)}; save the tokenizer that "
            "the model was trained with beside it"
        )
    return f"the {what} in {name!r} cannot be read ({reason}); {REMEDY}"


def _check_pulled(name: str) -> None:
    """Check that no file of a folder is what Git LFS puts in place of one. Raises UserError, naming it."""
    folder = Path(resolve(name))
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        check_pulled(file)


def _encoder_keys(model: PreTrainedModel) -> set[str]:
    """The names in the state of `model` that belong to its encoder."""
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    return {f"{prefix}{key}" for key in model.base_model.state_dict()}


def _check_shapes(differing: Sequence[tuple[str, Any, Any]], encoder: set[str], name: str) -> None:
    """Check that no tensor has another shape in the checkpoint than in the model; those of the encoder are named."""
    if differing:
        key, held, wanted = min(differing, key=lambda each: (each[0] not in encoder, each[0]))
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise UserError(
            f"the checkpoint {name!r} holds {key} of shape {list(held)} where its config.json asks for "
            f"{list(wanted)}{more}; restore the config.json that was saved with it"
        )


def _check_complete(encoder: set[str], missing: set[str], unexpected: set[str], name: str) -> None:
    """Check that a checkpoint has all of its encoder but the pooler."""
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


def _say_left_out(model: PreTrainedModel, unexpected: set[str], name: str) -> None:
    """Say what of an encoder a checkpoint has and its configuration does not."""
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


BLOCK_LENGTH = 512
"""Tokens of a block where nothing else is asked for (paper, Table 1)."""


def block_length(asked: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The block length asked for, or the least of 512, the model's positions and the tokenizer's longest input.

    Raises:
        UserError: the model has fewer positions than asked for.
    """
    positions = longest_input(model)
    if asked is not None and asked > positions:
        raise UserError(f"--max-length {asked} is more than the {positions} positions of the model; lower it")
    return asked or min(BLOCK_LENGTH, positions, tokenizer.model_max_length)


def read_head(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a head file. Raises UserError if it is missing or damaged."""
    check_pulled(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors and the file system each have their own
        raise UserError(
            f"the MLM head {path} cannot be read ({type(error).__name__}); give the head.safetensors of a run"
        ) from error
