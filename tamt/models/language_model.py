"""Masked language models: an encoder with the MLM head of BERT, RoBERTa, DistilBERT or ELECTRA."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from tamt.masks.masking import prunable_modules
from tamt.methods import methods_without_head
from tamt.models.dropout import without_dropout
from tamt.models.loading import load_config, load_model
from tamt.models.speed import speed_up
from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import check_pulled


@dataclass
class MaskedLanguageModel:
    """An encoder with its MLM head. The head trains; its decoder is the dense, frozen word embedding.

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
        """The input of the decoder, [n, its width], for hidden states [n, width] of the last layer."""
        model = self.model
        if hasattr(model, "cls"):  # BERT
            return model.cls.predictions.transform(hidden)
        if hasattr(model, "lm_head"):  # RoBERTa and related models
            return model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden)))
        if hasattr(model, "vocab_projector"):  # DistilBERT
            return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
        return model.generator_predictions(hidden)  # ELECTRA

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the head that train: transform, LayerNorm and output bias, not the decoder's matrix."""
        inside = {id(parameter) for parameter in self.encoder.parameters()}
        inside.add(id(self.decoder.weight))
        return {name: p for name, p in self.model.named_parameters() if id(p) not in inside}

    def load_head(self, state: dict[str, Tensor], source: Path) -> None:
        """Load the head's parameters from `state`. Raises UserError if names or shapes differ."""
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


def load_masked_language_model(name: str, need_head: bool = True, dropout: bool = True) -> MaskedLanguageModel:
    """The model `name` with an MLM head. Its decoder is untied: it stays dense and frozen while the embedding changes.

    The decoder is the checkpoint's own, or a copy of the word embedding where it is tied to that or missing. A
    checkpoint without MLM head gets a fresh one (from torch's global generator: seed it first).

    Args:
        name: hub name or folder, or "demo".
        need_head: whether the head is used. If not, a model whose head is not known here, such as ModernBERT, has a
            `fresh_head`, so that no MLM loss is measured.
        dropout: whether the model has the dropout of its configuration in training, or none.

    Raises:
        UserError: the model cannot be loaded, has no prunable matrix or no MLM head that is known here but needed.
    """
    changes: dict[str, Any] = {} if dropout else without_dropout(load_config(name))
    model, missing = load_model(AutoModelForMaskedLM, name, **changes)
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


def read_head(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a head file. Raises UserError if it is missing or damaged."""
    check_pulled(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors and the file system each have their own
        raise UserError(
            f"the MLM head {path} cannot be read ({type(error).__name__}); give the head.safetensors of a run"
        ) from error
