"""The losses that masks are trained for, such as MLM and KD, and their weighted sum (paper 3.4.3)."""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.data.token_masking import IGNORED, Batch
from tamt.models.decoder_divergence import decoder_divergence
from tamt.models.decoder_loss import decoder_loss
from tamt.models.language_model import MaskedLanguageModel
from tamt.models.relations import Projections, relation_loss
from tamt.terms import TERMS, Weights, needs_teacher

LOGITS_TEMPERATURE = 2.0
"""Temperature of KD through the MLM head."""
CONTRASTIVE_TEMPERATURE = 0.05
"""Temperature of the contrastive loss, as in SimCSE."""


def mlm_loss(head: MaskedLanguageModel, hidden: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy on the masked tokens, mean over the masked positions; 0 if there are none.

    Only masked positions get logits. Logits of the other 85 % would take 13 % of the multiply-adds of a step of
    BERT-base and most of its memory.

    Args:
        head: the model whose MLM head computes the logits.
        hidden: last hidden states, [batch, length, width].
        batch: prepared.
    """
    read = head.transform(hidden.flatten(0, 1).index_select(0, batch["positions"]))
    return decoder_loss(read, head.decoder, batch["labels"], IGNORED) / batch["masked_tokens"].clamp(min=1)


def kd_loss(teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """1 − cos of teacher and student hidden states (paper eq. 6), mean over layers 1…L and the real tokens.

    Args:
        teacher: hidden states of the embedding output and of each layer, [batch, length, width] each.
        student: the same for the student.
        batch: prepared; its padding does not count.
    """
    cosines = [tk.cosine(t, s) for t, s in zip(teacher[1:], student[1:], strict=True)]
    distances = 1 - torch.stack(cosines).mean(0)
    real = batch.get("attention_mask")
    return (distances if real is None else distances * real).sum() / batch["real_tokens"]


def encode(model: PreTrainedModel, batch: Batch, hidden_states: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Last hidden state of an encoder and, if asked for, those of the embedding output and every layer."""
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        output_hidden_states=hidden_states,
        return_dict=True,
    )
    return output.last_hidden_state, output.hidden_states if hidden_states else ()


def logits_loss(
    teacher: MaskedLanguageModel, student: MaskedLanguageModel, target: Tensor, hidden: Tensor, batch: Batch
) -> Tensor:
    """KL(teacher ‖ student) of the MLM logits at temperature 2, times its square, mean over the masked positions.

    Args:
        teacher: the model whose MLM head reads `target`.
        student: the model whose MLM head reads `hidden`.
        target: last hidden states of the dense encoder, [batch, length, width].
        hidden: those of the student.
        batch: prepared.
    """
    with torch.no_grad():
        theirs = teacher.transform(target.flatten(0, 1).index_select(0, batch["positions"]))
    ours = student.transform(hidden.flatten(0, 1).index_select(0, batch["positions"]))
    counted = batch["labels"] != IGNORED
    total = decoder_divergence(ours, student.decoder, theirs, teacher.decoder, counted, LOGITS_TEMPERATURE)
    return total / batch["masked_tokens"].clamp(min=1)


def contrastive_loss(first: Tensor, second: Tensor, batch: Batch) -> Tensor:
    """InfoNCE of two views of each block, cosine / 0.05 (SimCSE, Gao et al., 2021), mean over the blocks.

    A block is the mean of its real tokens' last hidden states; the others of the batch are its negatives.

    Args:
        first: last hidden states, [batch, length, width].
        second: those of the same blocks under other dropout.
        batch: prepared.
    """
    with torch.autocast(first.device.type, enabled=False):
        ours, others = (F.normalize(_mean_of_tokens(view.float(), batch), dim=-1) for view in (first, second))
        similarities = ours @ others.T / CONTRASTIVE_TEMPERATURE
        own = torch.arange(len(similarities), device=similarities.device)
        return F.cross_entropy(similarities, own, reduction="sum") / batch["blocks"]


def _mean_of_tokens(hidden: Tensor, batch: Batch) -> Tensor:
    real = batch.get("attention_mask")
    if real is None:
        return hidden.mean(1)
    return (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True).clamp(min=1)


def frozen_head(student: MaskedLanguageModel) -> MaskedLanguageModel:
    """A frozen copy of the student's current MLM head; encoder and decoder matrix are shared, not copied."""
    shared = {id(student.encoder): student.encoder, id(student.decoder.weight): student.decoder.weight}
    copied = MaskedLanguageModel(copy.deepcopy(student.model, memo=dict(shared)), student.fresh_head)
    for parameter in copied.head_parameters().values():
        parameter.requires_grad_(False)
    return copied


@dataclass
class Losses:
    """The loss of a batch under an objective: the weighted sum of its terms.

    Create it after the masks are on the student, and before the student's head trains.

    Attributes:
        objective: the weight of each term.
        student: the model whose encoder is masked.
        teacher: the dense encoder, see `tamt.models.speed.dense_twin`; needed for KD of any kind.

    Raises:
        UserError: the objective compares attentions, and the encoder's has no separate queries, keys and values.
    """

    objective: Weights
    student: MaskedLanguageModel
    teacher: PreTrainedModel | None = None
    _projections: list[Projections] = field(default_factory=list, repr=False)
    _teacher_head: MaskedLanguageModel | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert self.objective.keys() <= TERMS.keys(), self.objective
        if "attention" in self.objective:
            assert self.teacher is not None
            self._projections = [Projections(self.teacher), Projections(self.student.encoder)]
        if "logits" in self.objective:
            self._teacher_head = frozen_head(self.student)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the objective by its name, and `loss`, their weighted sum, which is minimised.

        The batch must be prepared. Teacher and student read the same tokens, and each runs once for all terms; with
        the contrastive term every block goes through the student twice, in one batch.
        """
        of_teacher: _Outputs | None = None
        if needs_teacher(self.objective):
            assert self.teacher is not None
            # The teacher runs first, so that its memory is free again when the student keeps activations for backward.
            with torch.inference_mode():
                of_teacher = self._run(self.teacher, batch, 0)
        twice, rows = "contrastive" in self.objective, len(batch["input_ids"])
        student = self._run(self.student.encoder, _twice(batch) if twice else batch, 1)
        parts = self._terms(batch, of_teacher, student.first(rows) if twice else student)
        if twice:
            parts["contrastive"] = contrastive_loss(student.last[:rows], student.last[rows:], batch)
        weighted = [weight * parts[name] for name, weight in self.objective.items()]
        return {**{name: parts[name] for name in self.objective}, "loss": torch.stack(weighted).sum()}

    def _run(self, encoder: PreTrainedModel, batch: Batch, which: int) -> "_Outputs":
        last, hidden = encode(encoder, batch, hidden_states="kd" in self.objective)
        return _Outputs(last, hidden, self._projections[which].take() if self._projections else ())

    def _terms(self, batch: Batch, teacher: "_Outputs | None", student: "_Outputs") -> dict[str, Tensor]:
        """The terms of one view of each block."""
        parts: dict[str, Tensor] = {}
        if "mlm" in self.objective:
            parts["mlm"] = mlm_loss(self.student, student.last, batch)
        if teacher is None:
            return parts
        if "kd" in self.objective:
            parts["kd"] = kd_loss(teacher.hidden, student.hidden, batch)
        if "attention" in self.objective:
            heads, real = self.student.model.config.num_attention_heads, batch.get("attention_mask")
            parts["attention"] = relation_loss(
                teacher.projections, student.projections, heads, real, batch["real_tokens"]
            )
        if self._teacher_head is not None:
            parts["logits"] = logits_loss(self._teacher_head, self.student, teacher.last, student.last, batch)
        return parts


@dataclass(frozen=True)
class _Outputs:
    """The outputs of an encoder that the terms need: last hidden state, all hidden states, queries, keys and values."""

    last: Tensor
    hidden: tuple[Tensor, ...]
    projections: tuple[Tensor, ...]

    def first(self, rows: int) -> "_Outputs":
        """The outputs for the first blocks."""
        hidden, projections = (tuple(tensor[:rows] for tensor in kind) for kind in (self.hidden, self.projections))
        return _Outputs(self.last[:rows], hidden, projections)


def _twice(batch: Batch) -> dict[str, Tensor]:
    """The inputs of the encoder for a batch, with each block twice."""
    return {name: batch[name].repeat(2, 1) for name in ("input_ids", "attention_mask") if name in batch}
