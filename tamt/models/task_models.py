"""Models for fine-tuning: an encoder under a fresh head, and fine-tuned models with their own."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from tamt.masks.masking import prunable_modules
from tamt.models.loading import encoder_keys, load_config, load_model
from tamt.models.speed import speed_up
from tamt.runtime.console import say
from tamt.runtime.errors import UserError

FINETUNED = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
}
"""The loader of a fine-tuned model by a part of its class name."""


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast too.

    In bfloat16 a number near 5 is a multiple of 1/32, and one near 200 is whole: too coarse for a regression.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output, float32."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight, self.bias)


def load_classifier(name: str, labels: Sequence[str] | None, start: float = 0.0) -> PreTrainedModel:
    """The model `name`, fp32, under a fresh classification head with an output per label; without labels a regression.

    The head is drawn from torch's global generator (seed it first), even where the checkpoint holds one.

    Args:
        name: a hub name, a folder, or a model that comes with tamt.
        labels: the names of the labels, None for a regression.
        start: what a regression gives before it is trained, about: the bias of its output.

    Raises:
        UserError: the model cannot be loaded, has no prunable matrix, or its output has no bias to start with.
    """
    if labels is None:
        model = _load_fresh(AutoModelForSequenceClassification, name, num_labels=1, problem_type="regression")
        _answer_in_float32(model)
        if start:
            _start_at(model, name, start)
        return model
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
        UserError: the model cannot be loaded, or its checkpoint has no such head.
    """
    (kind, *_) = load_config(name).architectures or ["nameless model"]
    factory = next((factory for part, factory in FINETUNED.items() if part in kind), None)
    if factory is None:
        raise UserError(
            f"the model {name!r} is a {kind}, which has no head of a fine-tuned task; give a run folder of tamt "
            "finetune, or a folder with a fine-tuned model"
        )
    model, missing = load_model(factory, name)
    if missing:
        raise UserError(
            f"the checkpoint {name!r} lacks {min(missing)}, which fine-tuning would have trained; give a model that "
            "was fine-tuned and saved whole"
        )
    speed_up(model)
    if model.config.num_labels == 1:
        _answer_in_float32(model)
    return model


def _load_fresh(factory: Any, name: str, **options: Any) -> PreTrainedModel:
    """A model under a fresh head, even if the checkpoint holds one."""
    model, missing = load_model(factory, name, fresh_head=True, **options)
    if any("pooler" in key for key in missing & encoder_keys(model)):
        say(f"{name} has no trained pooler: a fresh one is drawn, as the head is")
    prunable_modules(model)
    speed_up(model)
    for module in _head(model):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return model


def _head(model: PreTrainedModel) -> list[nn.Module]:
    """The modules outside the encoder, in their order."""
    inside = set(model.base_model.modules())
    return [module for module in model.modules() if module not in inside]


def _outputs(model: PreTrainedModel) -> list[nn.Linear]:
    """The layers of a regression's head that give one number: the last one, in every model that is known."""
    return [module for module in _head(model) if isinstance(module, nn.Linear) and module.out_features == 1]


def _answer_in_float32(model: PreTrainedModel) -> None:
    """Let the output of a regression be float32, whatever the rest of the model computes in."""
    for output in _outputs(model):
        output.__class__ = Float32Linear


def _start_at(model: PreTrainedModel, name: str, start: float) -> None:
    """Set the bias of the output of a regression."""
    outputs = _outputs(model)
    if len(outputs) != 1 or outputs[0].bias is None:
        raise UserError(
            f"the head of {name} has no bias that could start at the labels' mean; give --regression-start zero"
        )
    nn.init.constant_(outputs[0].bias, start)
