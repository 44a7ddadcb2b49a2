"""Classification of sentences and pairs: tokens, batches, loss and evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.tasks import Metric, Rows, Task
from tamt.errors import UserError

WINDOW = 50
"""Batches within which rows are sorted by length: 5 % of SST-2's tokens are then padding, of shuffled rows 67 %."""


@dataclass
class Encoded:
    """Tokenised rows: what the model reads of each, unpadded, and the ids of their labels."""

    features: list[dict[str, list[int]]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, special tokens counted; int64 [rows]."""
        return np.array([len(feature["input_ids"]) for feature in self.features])


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int) -> Encoded:
    """Tokenise rows, each cut to `max_length` tokens; of a pair the longer text loses tokens first.

    Raises:
        UserError: `max_length` leaves no room for text beside the special tokens.
    """
    if max_length <= tokenizer.num_special_tokens_to_add(pair=len(rows.texts[0]) == 2):
        raise UserError(f"--max-length {max_length} leaves no room for text beside the special tokens; raise it")
    token_types = getattr(model.config, "type_vocab_size", 0) > 1  # RoBERTa has one type, DistilBERT none
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=token_types)
    names = list(encoded)
    features = [dict(zip(names, row, strict=True)) for row in zip(*(encoded[name] for name in names), strict=True)]
    return Encoded(features, rows.labels)


@dataclass
class Classification:
    """A classification task made ready for a model: what `train_subnetwork` trains on and measures by."""

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    train: Encoded
    dev: Encoded
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return -(-len(self.train) // self.batch_size)

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Training batches without end from step `first` (from 1) on; batch i depends on the seed and i alone."""
        lengths = self.train.lengths()
        epoch, start = divmod(first - 1, self.steps_per_epoch)
        while True:
            order = np.random.default_rng((self.seed, epoch))
            for indices in bucketed(lengths, self.batch_size, order)[start:]:
                yield self._collate(self.train, indices)
            epoch, start = epoch + 1, 0

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy, mean over the batch."""
        return {"loss": F.cross_entropy(self._logits(batch).float(), batch["labels"])}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The task's metric on the dev rows. Batches hold rows of like length, so that little is padding."""
        assert self.task.label_names is not None
        confusion = MulticlassConfusionMatrix(len(self.task.label_names)).to(self.accelerator.device)
        self.model.eval()
        order = np.argsort(self.dev.lengths(), kind="stable").tolist()
        size = 2 * self.batch_size  # nothing is kept for a backward pass
        for start in range(0, len(order), size):
            batch = self._collate(self.dev, order[start : start + size])
            with self.accelerator.autocast():
                logits = self._logits(batch)
            confusion.update(logits.argmax(-1), batch["labels"])
        # From the counts in double precision: torchmetrics' own accuracy is rounded to fp32.
        return {self.task.metric: METRICS[self.task.metric](confusion.compute())}

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits

    def _collate(self, rows: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        batch = self.tokenizer.pad([rows.features[i] for i in indices], return_tensors="pt")
        batch["labels"] = torch.tensor([rows.labels[i] for i in indices])
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}


def accuracy(confusion: Tensor) -> float:
    """The share of right answers, from counts [true label, predicted label]."""
    return confusion.trace().item() / confusion.sum().item()


METRICS: dict[Metric, Callable[[Tensor], float]] = {"accuracy": accuracy}


def bucketed(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[list[int]]:
    """All rows once, in a random order of batches that hold rows of like length.

    Rows are shuffled, sorted by length within windows of 50 batches (a quarter of the epoch if it is short, so that
    batches differ between epochs), cut into batches, and the batches shuffled.

    Args:
        lengths: tokens of each row, [rows].
        batch_size: rows a batch.
        generator: decides the order.
    """
    order = generator.permutation(len(lengths))
    batches = -(-len(lengths) // batch_size)
    window = batch_size * min(WINDOW, max(1, batches // 4))
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    cut = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    return [cut[i] for i in generator.permutation(len(cut))]
