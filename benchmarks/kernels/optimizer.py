"""The step of MaskAdamW for all matrices, in place: gradient, AdamW, thresholds and masked weights."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import tamt_kernels as tk
from benchmarks import scores
from benchmarks.kernels.setting import COPY, EAGER, OURS, Setting
from benchmarks.kernels.threshold import by_kthvalue
from benchmarks.measure import Comparison, Contenders
from tamt_kernels import reference
from tamt_kernels.ops.gradient_norm import gradient_norm
from tamt_kernels.ops.mask_adamw import mask_adamw
from tamt_kernels.ops.pattern_adamw import pattern_adamw

PATTERN = tk.Pattern(2, 4)
UNSTRUCTURED = "mask_adamw of as many entries"
SEPARATE, ORDINARY, NORM = "fused AdamW, then each operation", "AdamW loop, kthvalue loop, float masks", "norm alone"
BETAS, EPS, COUNT = (0.9, 0.999), 1e-8, 1000  # of a step late enough for the moments to be what they mostly are


class Step:
    """Matrices in training. Every call moves them a step on, so each contender has its own."""

    def __init__(self, setting: Setting) -> None:
        shapes, device = setting.shapes, setting.device
        self.keep = [scores.keep(shape) for shape in shapes]
        self.weights = [scores.weight(shape, device, number) for number, shape in enumerate(shapes)]
        self.scores = scores.scores(scores.USUAL, shapes, device)
        drawn = scores.generator(device)
        self.grads = [torch.randn(shape, device=device, generator=drawn).to(setting.dtype) for shape in shapes]
        self.means = [0.1 * grad.float() * weight for grad, weight in zip(self.grads, self.weights, strict=True)]
        self.squares = [mean.square() * 100 for mean in self.means]
        self.thresholds = tk.topk_threshold(self.scores, self.keep)
        self.masked = self.mask(setting.dtype)
        rates = [0.01, scores.LEARNING_RATE / (1 - BETAS[0] ** COUNT), math.sqrt(1 - BETAS[1] ** COUNT), 1.0]
        self.rates = torch.tensor(rates, device=device)

    def mask(self, dtype: torch.dtype) -> list[Tensor]:
        matrices = zip(self.weights, self.scores, *self.thresholds, strict=True)
        return [tk.mask_weight(*matrix, dtype) for matrix in matrices]

    def run(self, norm: Callable[..., Tensor], step: Callable[..., None]) -> Tensor:
        found = norm(self.grads, self.weights)
        step(
            self.grads, self.weights, self.scores, self.means, self.squares, self.masked, *self.thresholds, self.keep,
            self.rates, *BETAS, EPS,
        )  # fmt: skip
        return found

    def separate(self) -> Callable[[], object]:
        """torch's fused AdamW between operations of ours."""
        optimizer = self._optimizer(True)

        def run() -> None:
            pairs = zip(self.grads, self.weights, strict=True)
            self._collect([tk.ste_backward(*pair, torch.float32) for pair in pairs])
            optimizer.step()
            self.thresholds = tk.topk_threshold(self.scores, self.keep, last=self.thresholds, check_nan=False)
            self.masked = self.mask(self.masked[0].dtype)

        return run

    def ordinary(self) -> Callable[[], object]:
        """What most would write."""
        optimizer = self._optimizer(False)

        def run() -> None:
            self._collect([grad * weight for grad, weight in zip(self.grads, self.weights, strict=True)])
            optimizer.step()
            values = [by_kthvalue(each.reshape(-1), keep) for each, keep in zip(self.scores, self.keep, strict=True)]
            matrices = zip(self.weights, self.scores, values, strict=True)
            self.masked = [weight * (score >= value).to(weight.dtype) for weight, score, value in matrices]

        return run

    def _optimizer(self, fused: bool) -> torch.optim.AdamW:
        del self.means, self.squares  # it has its own, and all contenders have to fit into memory together
        lr = scores.LEARNING_RATE
        return torch.optim.AdamW(self.scores, lr=lr, weight_decay=0.0, fused=fused, foreach=False)

    def _collect(self, grads: list[Tensor]) -> None:
        for score, grad in zip(self.scores, grads, strict=True):
            score.grad = grad.to(score.dtype)
        torch.nn.utils.clip_grad_norm_(self.scores, 1.0)


def comparisons(setting: Setting) -> Iterator[Comparison]:
    ours, definition = Step(setting), Step(setting)
    entries, width = sum(weight.numel() for weight in ours.weights), setting.dtype.itemsize
    # Gradient and weight are read twice, for the norm first; scores and moments read and written; the masked weights
    # read, and written where they changed, which is next to nowhere.
    moved = entries * (2 * (width + 4) + 3 * 8 + width)
    found: Contenders = {
        OURS: lambda: ours.run(gradient_norm, mask_adamw),
        NORM: lambda: gradient_norm(ours.grads, ours.weights),
        EAGER: lambda: definition.run(reference.gradient_norm, reference.mask_adamw),
        SEPARATE: Step(setting).separate(),
        ORDINARY: Step(setting).ordinary(),
        COPY: setting.copy(moved),
    }
    yield Comparison("mask_adamw", "both", f"{len(setting.shapes)} matrices", found, moved)


class PatternStep(Step):
    """The same matrices with a pattern of each group. Without thresholds."""

    def run(self, norm: Callable[..., Tensor], step: Callable[..., None]) -> Tensor:
        found = norm(self.grads, self.weights)
        step(
            self.grads, self.weights, self.scores, self.means, self.squares, self.masked, *PATTERN, self.rates, *BETAS,
            EPS,
        )  # fmt: skip
        return found

    def mask(self, dtype: torch.dtype) -> list[Tensor]:
        return [tk.pattern_weight(*pair, PATTERN, dtype) for pair in zip(self.weights, self.scores, strict=True)]


def pattern_comparisons(setting: Setting) -> Iterator[Comparison]:
    """A step for masks of a pattern, against one that must search for thresholds."""
    ours, definition, unstructured = PatternStep(setting), PatternStep(setting), Step(setting)
    entries, width = sum(weight.numel() for weight in ours.weights), setting.dtype.itemsize
    moved = entries * (2 * (width + 4) + 3 * 8 + width)
    found: Contenders = {
        OURS: lambda: ours.run(gradient_norm, pattern_adamw),
        UNSTRUCTURED: lambda: unstructured.run(gradient_norm, mask_adamw),
        EAGER: lambda: definition.run(reference.gradient_norm, reference.pattern_adamw),
        COPY: setting.copy(moved),
    }
    yield Comparison("pattern_adamw", "both", f"{len(setting.shapes)} matrices, {PATTERN}", found, moved)
