"""Masking of tokens for MLM, and the form of batches that losses read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that no loss counts."""
COUNTS = ("real_tokens", "masked_tokens", "blocks")
"""Entries of a prepared batch by which losses are divided."""
Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and `special`, [batch, length]; `labels`, IGNORED at tokens that are not masked. The
result of `prepare` goes to the device."""


@dataclass(frozen=True)
class TokenMasking:
    """Masking of tokens for MLM: 15 % are chosen; 80 % of these become the mask token, 10 % a random token.

    Special tokens and padding are never chosen. The choice depends on the generator only.
    """

    mask_token: int
    vocabulary: int
    probability: float = 0.15

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> "TokenMasking":
        """The masking for a tokenizer and its model; random tokens are in the vocabulary of both."""
        return cls(tokenizer.mask_token_id, min(len(tokenizer), model.config.vocab_size))

    def most(self, tokens: int) -> int:
        """Upper bound (mean + 6 σ) on the masked tokens in a batch of `tokens`, rounded up to a multiple of 8."""
        deviation = math.sqrt(tokens * self.probability * (1 - self.probability))
        return min(tokens, 8 * math.ceil((tokens * self.probability + 6 * deviation) / 8))

    def __call__(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """`batch` with masked `input_ids`, and with `labels`: the original token at chosen positions."""
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
    """A batch with everything that a loss needs; computed on the CPU because a GPU would have to be waited for.

    Args:
        batch: the batch, on the CPU.
        places: minimum length of `positions`, so that batches with different numbers of masked tokens have one shape.
            Entries beyond the masked tokens have the label IGNORED, which adds nothing to a loss.

    Returns:
        `input_ids`; `attention_mask`, only if there is padding, because attention is fastest without it; the 0-dim
        counts `real_tokens`, `blocks` and `masked_tokens` (masked batches only), which for a step of several batches
        are to be replaced by the sums over all of them; and of a masked batch `positions`, int64 [masked], the flat
        indices of the masked tokens, and their `labels` [masked].
    """
    ids = batch["input_ids"]
    prepared = {"input_ids": ids, "real_tokens": batch["attention_mask"].sum(), "blocks": torch.tensor(len(ids))}
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
