"""Classification of sentences and pairs, and regression as a classification of one output: GLUE's tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.rows import Rows
from tamt.data.tasks import Task
from tamt.finetuning.batches import pad, shared_batches, steps_per_epoch
from tamt.finetuning.metrics import METRICS
from tamt.runtime import processes
from tamt.runtime.errors import UserError


@dataclass
class Encoded:
    """Tokenised rows: what the model reads of each, unpadded, and the ids of their labels, or numbers, or none."""

    features: list[dict[str, list[int]]]
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.features)

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


def encode_dev(
    dev: Mapping[str, Rows], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int
) -> dict[str, Encoded]:
    """Tokenise dev sets, for a job to know them by name: the main one, the first, has none."""
    names = ["", *(split.removeprefix("dev_") for split in list(dev)[1:])]
    return {name: encode(rows, tokenizer, model, max_length) for name, rows in zip(names, dev.values(), strict=True)}


@dataclass
class Classification:
    """A task made ready for a model: what `train_subnetwork` trains on and measures by.

    Attributes:
        batch_size: rows that go through the model at once, at most; twice as many where it is measured.
        step_rows: rows of a training step, over all processes.
        dev: the dev sets by name; the score is that of the first, whose name is "".
        cuda_graphs: training batches have few lengths, as a graph is for one.
        output_of_label: for each label the output of the model that stands for it; None where that is the label's id.
    """

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    train: Encoded
    dev: dict[str, Encoded]
    batch_size: int
    step_rows: int
    seed: int
    cuda_graphs: bool = False
    output_of_label: Sequence[int] | None = None
    _outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Logits of the last evaluation, [rows, labels], or [rows] of a regression."""

    @property
    def train_samples(self) -> int:
        """Rows to train on."""
        return len(self.train)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return steps_per_epoch(len(self.train), self.step_rows)

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """This process's training batches without end from step `first` (from 1) on; see `shared_batches`."""
        parts = self.accelerator.gradient_accumulation_steps
        for indices, share in shared_batches(self.train.lengths(), self.step_rows, parts, self.seed, first):
            labels = torch.tensor([self.train.labels[i] for i in indices])
            yield {**self._collate(self.train, indices, self.cuda_graphs), "labels": labels, "share": share}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy, or the squared error of a regression; the batch's share in the mean over the step."""
        logits = self._logits(batch).float()
        if self.task.kind == "regression":
            return {"loss": F.mse_loss(logits, batch["labels"]) * batch["share"]}
        return {"loss": F.cross_entropy(logits, batch["labels"]) * batch["share"]}

    def evaluate(self) -> dict[str, float | None]:
        """The task's metrics on each dev set that has labels; those of a further set end in `_` and its name."""
        scores = {}
        for name, rows in self.dev.items():
            self._outputs[name] = self._forward(rows)
            found = self._answers(name)
            for metric in self.task.metrics if rows.labels else ():
                scores[f"{metric}{'_' * bool(name)}{name}"] = METRICS[metric](found, np.array(rows.labels))
        return scores

    def predictions(self) -> dict[str, list[dict]]:
        """Of the last evaluation: the row's number, from 0, the predicted and the true label, and the probabilities.

        Of a regression the numbers alone; without the true label where the rows have none.
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
        """Outputs for all rows in double precision; batches hold rows of like length, so that little is padding."""
        self.model.eval()
        order = np.argsort(rows.lengths(), kind="stable")
        size = 2 * self.batch_size  # nothing is kept for a backward pass
        outputs = []
        for start in range(0, len(order), size)[processes.dealt()]:
            batch = self._collate(rows, order[start : start + size].tolist(), few_lengths=False)
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            with self.accelerator.autocast():
                outputs.append(self._logits(batch).double().cpu().numpy())
        found = np.concatenate(processes.collect(outputs))
        in_order = np.empty_like(found)
        in_order[order] = found
        return in_order

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        read = {name: tensor for name, tensor in batch.items() if name not in ("labels", "share")}
        logits: Tensor = self.model(**read).logits
        if self.task.kind == "regression":
            return logits.squeeze(-1)
        return logits if self.output_of_label is None else logits[:, list(self.output_of_label)]

    def _collate(self, rows: Encoded, indices: Sequence[int], few_lengths: bool) -> dict[str, Tensor]:
        return pad(self.tokenizer, [rows.features[i] for i in indices], few_lengths)
