"""What masks are trained for: masked language modelling, knowledge distillation, both (paper 3.4.3)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tamt_kernels as tk
from tamt.decoder_loss import decoder_loss
from tamt.models import MaskedLanguageModel

Objective = Literal["mlm", "kd", "mlm+kd"]
IGNORED = -100


def objective_of(weights: Mapping[str, float]) -> Objective:
    """The objective with these terms."""
    return cast(Objective, "+".join(weights))


Batch = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, [batch, length]; `special`; `labels`, IGNORED where no token is masked. What
`prepare` makes of it goes to the device."""


@dataclass(frozen=True)
class TokenMasking:
    """How tokens are masked for MLM: 15 % are chosen; 80 % of these become the mask token, 10 % a random one.

    Special tokens and padding are never chosen. The draw depends on the generator alone.
    """

    mask_token: int
    vocabulary: int
    probability: float = 0.15

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> "TokenMasking":
        """The masking for a tokenizer and its model, whose vocabulary bounds the random tokens."""
        return cls(tokenizer.mask_token_id, min(len(tokenizer), model.config.vocab_size))

    def most(self, tokens: int) -> int:
        """More masked tokens than so many of `tokens` have but once in a thousand million batches; a multiple of 8."""
        deviation = math.sqrt(tokens * self.probability * (1 - self.probability))
        return min(tokens, 8 * math.ceil((tokens * self.probability + 6 * deviation) / 8))

    def __call__(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """`batch` with masked `input_ids` and `labels`, which hold the original token where it was chosen."""
        ids = batch["input_ids"]
        chance = torch.rand(ids.shape, generator=generator)
        fate = torch.rand(ids.shape, generator=generator)
        words = torch.randint(self.vocabulary, ids.shape, generator=generator)
        chosen = (chance < self.probability) & ~batch["special"]
        masked = torch.where(fate < 0.8, self.mask_token, torch.where(fate < 0.9, words, ids))
        return {
            **batch,
            "input_ids": torch.where(chosen, masked, ids),
            "labels": torch.where(chosen, ids, IGNORED),
        }


def prepare(batch: Batch, places: int = 0) -> dict[str, Tensor]:
    """A batch with all that a loss must know of it and could learn on a GPU only by waiting; made on the CPU.

    Args:
        batch: on the CPU.
        places: `positions` has so many entries at least, so that batches with more or fewer masked tokens have one
            shape. Those beyond the masked tokens have the label IGNORED, which adds nothing to a loss.

    Returns:
        `input_ids`; `attention_mask`, only if a token is padding: without one attention takes its fastest path; the
        numbers `real_tokens` and, of a masked batch, `masked_tokens`, 0-dim, for several batches that make one step to
        be replaced by those of all of them; and of a masked batch `positions`, int64 [masked], which count through all
        of its tokens, with their `labels` [masked].
    """
    prepared = {"input_ids": batch["input_ids"], "real_tokens": batch["attention_mask"].sum()}
    if prepared["real_tokens"] < batch["attention_mask"].numel():
        prepared["attention_mask"] = batch["attention_mask"]
    if "labels" in batch:
        labels = batch["labels"].flatten()
        positions = (labels != IGNORED).nonzero().squeeze(1)
        beyond = (0, max(places - len(positions), 0))
        prepared |= {
            "positions": F.pad(positions, beyond),
            "labels": F.pad(labels[positions], beyond, value=IGNORED),
            "masked_tokens": torch.tensor(len(positions)),
        }
    return prepared


def mlm_loss(head: MaskedLanguageModel, hidden: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy on the masked tokens, mean over the masked positions (0 where there is none).

    Only masked positions get logits: the other 85 % would be 13 % of the multiply-adds of BERT-base's step (2 × 23.4 M
    of 302 M a token, forward and backward) and most of its memory.

    Args:
        head: the model whose MLM head is asked.
        hidden: last hidden states, [batch, length, width].
        batch: prepared.
    """
    read = head.transform(hidden.flatten(0, 1).index_select(0, batch["positions"]))
    return decoder_loss(read, head.decoder, batch["labels"], IGNORED) / batch["masked_tokens"].clamp(min=1)


def kd_loss(teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """1 − cos of teacher and student hidden states (paper eq. 6), mean over layers 1…L and the real tokens.

    Args:
        teacher: hidden states of the embedding output and of each layer, [batch, length, width] each.
        student: the same of the student.
        batch: prepared; its padding counts nothing.
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


@dataclass
class Losses:
    """The loss of a batch under an objective, with the parts it is the sum of.

    Attributes:
        student: the model whose encoder is masked.
        teacher: the dense encoder, see `tamt.models.dense_twin`; needed for KD.
        kd_weight: weight of the KD term beside MLM's 1 in "mlm+kd".
    """

    objective: Objective
    student: MaskedLanguageModel
    teacher: PreTrainedModel | None = None
    kd_weight: float = 1.0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """`mlm` and `kd` as the objective has them, and `loss`, what is minimised.

        The batch is a prepared one. For "mlm+kd" teacher and student read the same masked tokens.
        """
        target: tuple[Tensor, ...] = ()
        if "kd" in self.objective:
            assert self.teacher is not None
            # First, as what it takes in passing is then not on top of what the student's backward needs.
            with torch.inference_mode():
                _, target = encode(self.teacher, batch, hidden_states=True)
        last, hidden = encode(self.student.encoder, batch, hidden_states="kd" in self.objective)
        parts: dict[str, Tensor] = {}
        if "mlm" in self.objective:
            parts["mlm"] = mlm_loss(self.student, last, batch)
        if "kd" in self.objective:
            parts["kd"] = kd_loss(target, hidden, batch)
        weight = self.kd_weight if self.objective == "mlm+kd" else 1.0
        weighted = [weight * value if name == "kd" else value for name, value in parts.items()]
        return {**parts, "loss": torch.stack(weighted).sum()}
