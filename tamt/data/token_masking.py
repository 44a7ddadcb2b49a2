"""Token masking for MLM, and batches as the losses read them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100


COUNTS = ("real_tokens", "masked_tokens", "blocks")
"""What of a prepared batch losses are divided by."""


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
        numbers `real_tokens`, `blocks` and, of a masked batch, `masked_tokens`, 0-dim, for several batches that make
        one step to be replaced by those of all of them; and of a masked batch `positions`, int64 [masked], which count
        through all of its tokens, with their `labels` [masked].
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
