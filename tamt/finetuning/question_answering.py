"""Extractive question answering, SQuAD v1.1 and v2.0: windows over long contexts, loss, answers and evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.digest import Row, data_digest
from tamt.data.squad import Question
from tamt.data.tasks import Metric, Task
from tamt.finetuning.batches import pad, shared_batches, steps_per_epoch
from tamt.finetuning.metrics import answer_exact_match, answer_f1, best_threshold, normalise
from tamt.runtime import processes
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute

LONGEST_QUESTION = 64
"""Tokens of a question at most, as in BERT's own script; in short inputs at most half of the input."""

SCORES: dict[Metric, Callable[[str, Sequence[str]], float]] = {"f1": answer_f1, "exact_match": answer_exact_match}

N_BEST = 20
"""Number of best starts and of best ends that are paired to answers."""
MAX_ANSWER_LENGTH = 30
"""Tokens of an answer at most."""
CHUNK = 1000
"""Questions that are tokenised at once; all 88,000 would need gigabytes for their offsets."""


@dataclass
class Window:
    """A question with as much of its context as fits into one input.

    Attributes:
        features: what the model reads, each int32 [tokens].
        question: the number of the question.
        context: its tokens that are of the context: first, and one past the last.
        offsets: where each token of the context begins and ends in it, in characters; int32 [tokens, 2].
        answer: first and last token of the first right answer; both `nowhere` if it is not wholly in this window.
        nowhere: the token that stands for no answer: [CLS], or the first where there is none.
    """

    features: dict[str, np.ndarray]
    question: int
    context: tuple[int, int]
    offsets: np.ndarray
    answer: tuple[int, int]
    nowhere: int = 0


def make_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    max_length: int,
    stride: int,
) -> list[Window]:
    """Tokenise questions with their contexts; a long context is split into several windows.

    Args:
        questions: to tokenise.
        tokenizer: a fast one, which knows where in the text a token is.
        model: decides whether there are token types.
        max_length: tokens per window, including special tokens.
        stride: tokens that neighbouring windows of a context share.

    Raises:
        UserError: `stride` leaves no room for more of the context, or the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} does not know where a token is in its text; choose another model")
    longest_question = min(LONGEST_QUESTION, max_length // 2)
    room = max_length - longest_question - tokenizer.num_special_tokens_to_add(pair=True)
    if stride >= room:
        raise UserError(
            f"windows of --max-length {max_length} hold {max(room, 0)} tokens of context beside a long question, which "
            f"--stride {stride} does not fit into; lower it or raise --max-length"
        )
    token_types = getattr(model.config, "type_vocab_size", 0) > 1  # RoBERTa has one type, DistilBERT none
    windows: list[Window] = []
    for first in range(0, len(questions), CHUNK):
        chunk = questions[first : first + CHUNK]
        encoded = tokenizer(
            [_cut(question.question.strip(), tokenizer, longest_question) for question in chunk],
            [question.context for question in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=token_types,
        )
        sources = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        names = list(encoded)
        for number, source in enumerate(sources):
            of_context = np.flatnonzero([sequence == 1 for sequence in encoded.sequence_ids(number)])
            begin, end = (int(of_context[0]), int(of_context[-1]) + 1) if len(of_context) else (0, 0)
            inside = np.array(offsets[number][begin:end], dtype=np.int32).reshape(-1, 2)
            features = {name: np.array(encoded[name][number], dtype=np.int32) for name in names}
            ids = encoded["input_ids"][number]
            nowhere = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            answer = _answer_tokens(chunk[source], begin, inside) or (nowhere, nowhere)
            windows.append(Window(features, first + source, (begin, end), inside, answer, nowhere))
    return windows


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> str:
    """The beginning of `text` that is `longest` tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[longest - 1][1]] if len(offsets) > longest else text


def _answer_tokens(question: Question, begin: int, offsets: np.ndarray) -> tuple[int, int] | None:
    """The first and last token of the first right answer, None if the window that begins at `begin` lacks it."""
    if not question.answers:
        return None
    start = question.starts[0]
    stop = start + len(question.answers[0])
    if not len(offsets) or start < offsets[0, 0] or stop > offsets[-1, 1]:
        return None
    first = np.searchsorted(offsets[:, 0], start, side="right") - 1
    last = np.searchsorted(offsets[:, 1], stop, side="left")
    return begin + int(first), begin + int(last)


@dataclass
class Answer:
    """A span of a context that may be the answer.

    Attributes:
        text: the span.
        score: the logits of its start and its end, added.
        probability: its share of the softmax over the candidates of the question.
        no_answer: the score of "no answer" less `score`.
    """

    text: str
    score: float
    probability: float
    no_answer: float = 0.0


def best_answer(
    question: Question,
    windows: Sequence[Window],
    starts: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
    n_best: int,
    max_answer_length: int,
) -> Answer:
    """The best span over all windows of a question.

    In each window the `n_best` best starts and ends within the context are paired; pairs that end before they start
    or are longer than `max_answer_length` are left out. If none is left, the answer is empty. "No answer"
    scores the logits of start and end at `nowhere`, added, the least over the windows.

    Args:
        question: with the context that the answer is cut from.
        windows: of the question.
        starts: the start logits of each window's tokens, [tokens].
        ends: the end logits.
        n_best: candidates of a window, and those over which the probability is taken.
        max_answer_length: tokens of an answer.
    """
    spans: dict[tuple[int, int], float] = {}
    none = min(float(s[w.nowhere]) + float(e[w.nowhere]) for w, s, e in zip(windows, starts, ends, strict=True))
    for window, start, end in zip(windows, starts, ends, strict=True):
        inside = slice(*window.context)
        start, end = start[inside].astype(float), end[inside].astype(float)
        first = np.argsort(-start, kind="stable")[:n_best]
        last = np.argsort(-end, kind="stable")[:n_best]
        length = last[None, :] - first[:, None] + 1
        for i, j in np.argwhere((length >= 1) & (length <= max_answer_length)):
            span = int(window.offsets[first[i], 0]), int(window.offsets[last[j], 1])
            spans[span] = max(start[first[i]] + end[last[j]], spans.get(span, -np.inf))
    if not spans:
        return Answer("", 0.0, 0.0)
    # The sort is stable, so that of equal scores the one found first wins.
    candidates = sorted(spans.items(), key=lambda item: -item[1])[:n_best]
    (begin, stop), score = candidates[0]
    shares = np.exp(np.array([value for _, value in candidates]) - score)
    return Answer(question.context[begin:stop], float(score), float(1 / shares.sum()), none - float(score))


@dataclass
class QuestionAnswering:
    """SQuAD prepared for a model: its batches, its loss and its metrics.

    Attributes:
        batch_size: windows that go through the model at once, at most; twice as many in evaluations.
        step_rows: windows of a training step, over all processes.
        parts: batches of a training step in this process.
        cuda_graphs: pad training batches to few lengths, as each length needs its own graph.
        labelled: whether the answers to the dev questions are known; without them there are no metrics.
    """

    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    compute: Compute
    train: list[Window]
    dev: list[Window]
    questions: list[Question]
    batch_size: int
    step_rows: int
    seed: int
    n_best: int
    max_answer_length: int
    parts: int = 1
    cuda_graphs: bool = False
    labelled: bool = True
    _answers: list[Answer] = field(default_factory=list)
    """The answers to the dev questions in the last evaluation."""

    @property
    def train_samples(self) -> int:
        """Questions to train on."""
        return self.train[-1].question + 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches of windows per epoch; the last one may be smaller."""
        return steps_per_epoch(len(self.train), self.step_rows)

    def digest(self) -> str:
        """Digest of the windows to train on and of the dev windows, tokenised, with their answers."""
        tables: list[Iterator[Row]] = []
        for windows in (self.train, self.dev):
            tables += [(window.features["input_ids"] for window in windows), (window.answer for window in windows)]
        return data_digest(tables)

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Yield this process's training batches, endlessly, from step `first` (from 1) on; see `shared_batches`."""
        for indices, share in shared_batches(_lengths(self.train), self.step_rows, self.parts, self.seed, first):
            windows = [self.train[i] for i in indices]
            batch = self._collate(windows, self.cuda_graphs)
            answers = torch.tensor([window.answer for window in windows])
            yield batch | {"starts": answers[:, 0], "ends": answers[:, 1], "share": share}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of the cross-entropies of start and end over the tokens of a window: the batch's share in the step."""
        logits = self._logits({name: batch[name] for name in batch if name not in ("starts", "ends", "share")})
        # No answer lies in the padding; otherwise the loss of a window would depend on the others in its batch.
        real = batch.get("attention_mask")  # which FNet does not read
        padding = batch["input_ids"] == self.tokenizer.pad_token_id if real is None else real == 0
        start, end = (part.float().masked_fill(padding, torch.finfo(torch.float32).min) for part in logits)
        loss = F.cross_entropy(start, batch["starts"]) + F.cross_entropy(end, batch["ends"])
        return {"loss": loss / 2 * batch["share"]}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float | None]:
        """F1 and exact match on the dev questions, between 0 and 1; empty if the answers are not known.

        Where some have no answer, as in SQuAD v2.0, a question is left unanswered where that scores more than its best
        answer: the official threshold of 0. The best thresholds, and what they give, are reported too.
        """
        self.model.eval()
        order = np.argsort(_lengths(self.dev), kind="stable").tolist()
        size = 2 * self.batch_size  # nothing is kept for a backward pass
        found: list[list[tuple[int, tuple[np.ndarray, np.ndarray]]]] = []
        for begin in range(0, len(order), size)[processes.dealt()]:
            numbers = order[begin : begin + size]
            batch = self._collate([self.dev[i] for i in numbers], few_lengths=False)
            batch = {name: tensor.to(self.compute.device) for name, tensor in batch.items()}
            with self.compute.autocast():
                logits = self._logits(batch)
            pairs = zip(*(part.float().cpu().numpy() for part in logits), strict=True)
            found.append(list(zip(numbers, pairs, strict=True)))
        outputs = {number: pair for batch in processes.collect(found) for number, pair in batch}
        windows: list[list[int]] = [[] for _ in self.questions]
        for number, window in enumerate(self.dev):
            windows[window.question].append(number)
        self._answers = [
            best_answer(
                question,
                [self.dev[i] for i in numbers],
                [outputs[i][0] for i in numbers],
                [outputs[i][1] for i in numbers],
                self.n_best,
                self.max_answer_length,
            )
            for question, numbers in zip(self.questions, windows, strict=True)
        ]
        if not self.labelled:
            return {}
        rows = self.predictions()[""]
        scores: dict[str, float | None] = {
            metric: float(np.mean([row[metric] for row in rows])) for metric in self.task.metrics
        }
        return scores | (self._best_thresholds() if self.task.unanswerable else {})

    def _best_thresholds(self) -> dict[str, float]:
        differences = [answer.no_answer for answer in self._answers]
        answerable = [bool(question.answers) for question in self.questions]
        pairs = list(zip(self._answers, self.questions, strict=True))
        found = {}
        for metric in self.task.metrics:
            scores = [SCORES[metric](answer.text, self._right(question)) for answer, question in pairs]
            found[f"best_{metric}"], found[f"best_{metric}_threshold"] = best_threshold(scores, differences, answerable)
        return found

    def predictions(self) -> dict[str, list[dict]]:
        """For each question of the last evaluation: id, answer, right answers, probability, F1 and exact match.

        Where questions may have no answer, that is the empty text, and `no_answer` is what it scores more than the best
        answer. Without known answers there are no right ones and no scores.
        """
        return {"": [self._described(*pair) for pair in zip(self.questions, self._answers, strict=True)]}

    def _described(self, question: Question, answer: Answer) -> dict:
        unanswerable = self.task.unanswerable
        text = "" if unanswerable and answer.no_answer > 0 else answer.text
        row: dict[str, Any] = {"id": question.id, "prediction": text}
        if self.labelled:
            row["label"] = question.answers
        row["probability"] = answer.probability
        if unanswerable:
            row["no_answer"] = answer.no_answer
        if self.labelled:
            row |= {metric: SCORES[metric](text, self._right(question)) for metric in self.task.metrics}
        return row

    def _right(self, question: Question) -> list[str]:
        """The right answers; as in SQuAD v2.0's official script those of articles and punctuation are none there."""
        return [answer for answer in question.answers if not self.task.unanswerable or normalise(answer)]

    def _logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self.model(**batch)
        return outputs.start_logits, outputs.end_logits

    def _collate(self, windows: Sequence[Window], few_lengths: bool) -> dict[str, Tensor]:
        features = [{name: values.tolist() for name, values in window.features.items()} for window in windows]
        return pad(self.tokenizer, features, few_lengths)


def _lengths(windows: Sequence[Window]) -> np.ndarray:
    return np.array([len(window.features["input_ids"]) for window in windows])
