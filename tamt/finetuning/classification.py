"""Classification of sentences and pairs, and regression as a classification of one output: GLUE's tasks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.digest import Row, data_digest
from tamt.data.rows import Rows
from tamt.data.tasks import Task
from tamt.finetuning.batches import pad, shared_batches, steps_per_epoch
from tamt.finetuning.metrics import METRICS
from tamt.runtime import processes
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute


@dataclass
class Encoded:
    """Tokenised rows: the features of each, unpadded, and the ids of their labels, or numbers, or none."""

    features: list[dict[str, list[int]]]
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.features)

    def input_ids(self) -> Iterator[list[int]]:
        """The token ids of each row, including special tokens."""
        return (feature["input_ids"] for feature in self.features)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, including special tokens; int64 [rows]."""
        return np.array([len(feature["input_ids"]) for feature in self.features])


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int) -> Encoded:
    """Tokenise rows, each cut to `max_length` tokens; in a pair the longer text is cut first.

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


def encode_dev(
    dev: Mapping[str, Rows], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int
) -> dict[str, Encoded]:
    """Tokenise dev sets and name them; the first one is the main one, and its name is ""."""
    names = ["", *(split.removeprefix("dev_") for split in list(dev)[1:])]
    return {name: encode(rows, tokenizer, model, max_length) for name, rows in zip(names, dev.values(), strict=True)}


@dataclass
class Classification:
    """A task prepared for a model: its batches, its loss and its metrics.

    Attributes:
        batch_size: rows that go through the model at once, at most; twice as many in evaluations.
        step_rows: rows of a training step, over all processes.
        parts: batches of a training step in this process.
        dev: the dev sets by name; the score is that of the first, whose name is "".
        cuda_graphs: pad training batches to few lengths, as each length needs its own graph.
        output_of_label: the output of the model for each label; None if it is the label's id.
    """

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    compute: Compute
    train: Encoded
    dev: dict[str, Encoded]
    batch_size: int
    step_rows: int
    seed: int
    parts: int = 1
    cuda_graphs: bool = False
    output_of_label: Sequence[int] | None = None
    _outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Logits of the last evaluation, [rows, labels], or [rows] for regression."""

    @property
    def train_samples(self) -> int:
        """Rows to train on."""
        return len(self.train)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return steps_per_epoch(len(self.train), self.step_rows)

    def digest(self) -> str:
        """Digest of the rows to train on and of the dev rows, tokenised, with their labels."""
        tables: list[Iterable[Row]] = []
        for rows in (self.train, *self.dev.values()):
            tables += [rows.input_ids(), [rows.labels]]
        return data_digest(tables)

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Yield this process's training batches, endlessly, from step `first` (from 1) on; see `shared_batches`."""
        for indices, share in shared_batches(self.train.lengths(), self.step_rows, self.parts, self.seed, first):
            labels = torch.tensor([self.train.labels[i] for i in indices])
            yield {**self._collate(self.train, indices, self.cuda_graphs), "labels": labels, "share": share}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy, or squared error for regression: the batch's share in the mean over the step."""
        logits = self._logits(batch).float()
        if self.task.kind == "regression":
            return {"loss": F.mse_loss(logits, batch["labels"]) * batch["share"]}
        return {"loss": F.cross_entropy(logits, batch["labels"]) * batch["share"]}

    def evaluate(self) -> dict[str, float | None]:
        """The task's metrics on each labelled dev set; for further sets named `METRIC_SET`."""
        scores = {}
        for name, rows in self.dev.items():
            self._outputs[name] = self._forward(rows)
            answers = self._answers(name)
            for metric in self.task.metrics if rows.labels else ():
                key = f"{metric}_{name}" if name else metric
                scores[key] = METRICS[metric](answers, np.array(rows.labels))
        return scores

    def predictions(self) -> dict[str, list[dict]]:
        """For each row of the last evaluation: its number, from 0, predicted and true label, and the probabilities.

        For regression the numbers without probabilities; the true label only if the rows have labels.
        """
        return {name: self._described(name) for name in self.dev}

    def _described(self, name: str) -> list[dict]:
        names = self.task.label_names
        shares = torch.from_numpy(self._outputs[name]).softmax(-1).tolist() if names else []
        rows: list[dict[str, Any]] = []
        for i, answer in enumerate(self._answers(name).tolist()):
            row = {"id": i, "prediction": names[answer] if names else answer}
            if labels := self.dev[name].labels:
                row["label"] = names[int(labels[i])] if names else labels[i]
            if names:
                row["probabilities"] = dict(zip(names, shares[i], strict=True))
            rows.append(row)
        return rows

    def _answers(self, name: str) -> np.ndarray:
        outputs = self._outputs[name]
        return outputs if self.task.kind == "regression" else outputs.argmax(-1)

    @torch.no_grad()
    def _forward(self, rows: Encoded) -> np.ndarray:
        """Outputs for all rows in double precision, in batches of rows of similar length, so that little is padding."""
        self.model.eval()
        order = np.argsort(rows.lengths(), kind="stable")
        size = 2 * self.batch_size  # nothing is kept for a backward pass
        outputs = []
        for start in range(0, len(order), size)[processes.dealt()]:
            batch = self._collate(rows, order[start : start + size].tolist(), few_lengths=False)
            batch = {name: tensor.to(self.compute.device) for name, tensor in batch.items()}
            with self.compute.autocast():
                outputs.append(self._logits(batch).double().cpu().numpy())
        sorted_outputs = np.concatenate(processes.collect(outputs))
        in_order = np.empty_like(sorted_outputs)
        in_order[order] = sorted_outputs
        return in_order

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        read = {name: tensor for name, tensor in batch.items() if name not in ("labels", "share")}
        logits: Tensor = self.model(**read).logits
        if self.task.kind == "regression":
            return logits.squeeze(-1)
        return logits if self.output_of_label is None else logits[:, list(self.output_of_label)]

    def _collate(self, rows: Encoded, indices: Sequence[int], few_lengths: bool) -> dict[str, Tensor]:
        return pad(self.tokenizer, [rows.features[i] for i in indices], few_lengths)
