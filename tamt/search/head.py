"""Head warm-up: a fresh MLM head is trained alone, on the frozen dense encoder, before the search begins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tamt.data.corpora import dev_batches
from tamt.data.token_masking import prepare
from tamt.models.language_model import MaskedLanguageModel
from tamt.objectives import encode, mlm_loss
from tamt.runtime import processes
from tamt.runtime.console import Progress, say
from tamt.search.search import Search
from tamt.training.optimizer import make_optimizer
from tamt.training.steps import Stepper

LEARNING_RATE = 3e-3
"""At first. The search's 5e-5 would leave the transform nearly as it is."""
RATE_CUT, RATE_CUTS = 0.3, 3
"""Factor of the learning rate each time that the dev loss stops falling, and how often it is cut."""
EVALUATE_EVERY = 50
"""Steps between two measurements of the dev loss."""
LEAST_FALL = 0.005
PATIENCE = 2
"""The dev loss has stopped falling when this many measurements in a row are less than `LEAST_FALL` below the best one
before them."""
DEV_TOKENS = 4096
"""Least number of masked dev tokens that the loss is measured on, if there are as many."""


@dataclass
class BestHead:
    """The head with the lowest dev loss, and whether that has stopped falling at the lowest learning rate.

    Attributes:
        loss: the lowest dev loss.
        step: the step after which it was measured.
        parameters: those of the head then.
        cuts: how often the learning rate was cut.
    """

    loss: float = math.inf
    step: int = 0
    cuts: int = 0
    parameters: dict[str, Tensor] = field(default_factory=dict)
    _to_beat: float = math.inf
    _waited: int = 0

    def update(self, loss: float, step: int, head: Mapping[str, nn.Parameter]) -> None:
        """Record the dev loss after a step, and copy the head if it is the best one so far."""
        loss = math.inf if math.isnan(loss) else loss
        if loss < self.loss or not self.parameters:
            self.loss, self.step = loss, step
            self.parameters = {name: parameter.detach().clone() for name, parameter in head.items()}
        fell = loss < (1 - LEAST_FALL) * self._to_beat
        self._waited = 0 if fell else self._waited + 1
        if fell:
            self._to_beat = loss
        if self._waited == PATIENCE:
            self.cuts, self._waited = self.cuts + 1, 0

    def rate(self, _: int) -> float:
        """The factor of the learning rate."""
        return RATE_CUT**self.cuts

    @property
    def stopped_falling(self) -> bool:
        """Whether the dev loss has stopped falling after all cuts of the rate."""
        return self.cuts > RATE_CUTS


@torch.no_grad()
def start_from_frequencies(student: MaskedLanguageModel, tokens: Tensor) -> None:
    """Start a fresh MLM head from what is known without training.

    The output bias becomes the log of each token's share of the text, with one added to every count, and the matrix of
    the transform the identity, which a trained head is nearer to than to a random matrix.

    Args:
        student: the model with the head.
        tokens: integers [n], the training text.
    """
    counts = torch.bincount(tokens.long(), minlength=student.decoder.out_features) + 1.0
    bias = student.decoder.bias
    for parameter in student.head_parameters().values():
        if parameter is bias:
            parameter.copy_((counts / counts.sum()).log())
        elif parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1]:
            parameter.copy_(torch.eye(len(parameter)))


def warm_up_head(search: Search, most_steps: int) -> None:
    """Train the student's fresh MLM head until its dev loss stops falling, and keep the head with the lowest dev loss.

    Each time that the dev loss stops falling the learning rate is cut, three times.

    The encoder does not change; its dropout is off. The first of several processes measures the dev loss, so that all
    end at the same step with the same head.

    Args:
        search: its training and dev text are used.
        most_steps: the warm-up ends after this many optimizer steps at the latest.
    """
    student = search.student
    say(
        f"{search.options.model} has no MLM head: a fresh one is trained alone first, until its dev loss stops "
        f"falling or for {most_steps} steps (--head-warmup-steps)"
    )
    student.model.requires_grad_(False)
    assert search.text.train is not None
    start_from_frequencies(student, search.text.train.tokens)
    head = student.head_parameters()
    for parameter in head.values():
        parameter.requires_grad_(True)
    optimizer, _ = make_optimizer(head.values(), LEARNING_RATE, most_steps)
    best = BestHead()
    schedule = LambdaLR(optimizer, best.rate)
    dev = _DevText(search) if processes.first() else None

    def loss(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        student.encoder.eval()
        with torch.no_grad():
            hidden, _ = encode(student.encoder, batch, hidden_states=False)
        return {"loss": mlm_loss(student, hidden, batch)}

    options = search.options
    stepper = Stepper(search.compute, student.model, optimizer, schedule, search.text.parts, options.check_every)
    steps = stepper.take(search.text.batches(1, masked=True), loss, 1, most_steps)
    with Progress("head warm-up", most_steps) as progress:
        for step, parts in steps:
            figures = {}
            if step % EVALUATE_EVERY == 0 or step == most_steps:
                search.compute.loss_scale.check()
                figures["head_warmup_dev"] = processes.by_first(lambda: dev.loss() if dev else math.nan)
                best.update(figures["head_warmup_dev"], step, head)
            if step % options.log_every == 0 or figures:
                search.folder.log(step, head_warmup=parts["loss"], **figures)
                progress.update(step, f"loss {parts['loss']:.4f} dev loss {best.loss:.4f}")
            if best.stopped_falling:
                break
    with torch.no_grad():
        for name, parameter in head.items():
            parameter.copy_(best.parameters[name])
    why = "has stopped falling" if best.stopped_falling else "may fall further with more --head-warmup-steps"
    say(f"the MLM head has a dev loss of {best.loss:.3f} after {best.step} steps, which {why}")
    student.fresh_head = False


class _DevText:
    """The dense encoder's hidden states at masked dev tokens, on which every dev loss of the head is measured."""

    @torch.no_grad()
    def __init__(self, search: Search) -> None:
        self._search = search
        text, student, device = search.text, search.student, search.compute.device
        assert text.dev is not None
        student.encoder.eval()
        hidden: list[Tensor] = []
        labels: list[Tensor] = []
        for plain in dev_batches(text.dev, text.batch_size, 0, text.masking):
            batch = {name: tensor.to(device) for name, tensor in prepare(plain).items()}
            with search.compute.autocast():
                states, _ = encode(student.encoder, batch, hidden_states=False)
            hidden.append(states.flatten(0, 1)[batch["positions"]])
            labels.append(batch["labels"])
            if sum(map(len, labels)) >= DEV_TOKENS:
                break
        self._hidden = torch.cat(hidden)[None]
        count = self._hidden.shape[1]
        self._batch = {
            "positions": torch.arange(count, device=device),
            "labels": torch.cat(labels),
            "masked_tokens": torch.tensor(count, device=device),
        }

    @torch.no_grad()
    def loss(self) -> float:
        """The MLM loss of the current head, mean over the masked tokens, in nats."""
        with self._search.compute.autocast():
            return mlm_loss(self._search.student, self._hidden, self._batch).item()
