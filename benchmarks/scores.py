"""The weights of BERT-base and its scores as mask training leaves them, drawn at random but with their statistics.

What makes scores hard to rank is not in a Gaussian: at first two values only, later two narrow humps, and rows of the
word embedding whose tokens were never seen and that keep exactly 0 or 0.02, so that millions of entries tie.
"""

from functools import cache

import torch
from torch import Tensor

import tamt_kernels as tk

Shape = tuple[int, int]

SPARSITY = 0.7
LEARNING_RATE = 5e-5  # the paper's
TOKENS_PER_STEP = 16 * 512
INITIAL_SCORE = 0.02
# The scores that a search threshold sees for most of its time, after which all others are judged.
USUAL = "1,000 steps"
STEPS = {"OMP init": 0, "100 steps": 100, USUAL: 1000}
DISTRIBUTIONS = [*STEPS, "Gaussian", "constant"]


def bert_shapes(hidden: int = 768, intermediate: int = 3072, vocabulary: int = 30522, layers: int = 12) -> list[Shape]:
    """The prunable matrices, the word embedding first; BERT-base's 73 by default."""
    attention = [(hidden, hidden)] * 4
    return [(vocabulary, hidden), *[*attention, (intermediate, hidden), (hidden, intermediate)] * layers]


def keep(shape: Shape) -> int:
    """The ones of a mask at the sparsity of the benchmarks."""
    entries = shape[0] * shape[1]
    return entries - int(entries * SPARSITY)


def generator(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def weight(shape: Shape, device: torch.device, seed: int = 0) -> Tensor:
    """A weight with the spread of BERT's."""
    return torch.randn(shape, device=device, generator=generator(device, seed)) * 0.04


def scores(distribution: str, shapes: list[Shape], device: torch.device) -> list[Tensor]:
    """A score matrix for each shape."""
    return [_score(distribution, shape, device, number) for number, shape in enumerate(shapes)]


def _score(distribution: str, shape: Shape, device: torch.device, number: int) -> Tensor:
    drawn = generator(device, 1000 + number)
    if distribution == "Gaussian":
        return torch.randn(shape, device=device, generator=drawn)
    if distribution == "constant":
        return torch.full(shape, INITIAL_SCORE, device=device)
    score = magnitude_mask(weight(shape, device, number)) * INITIAL_SCORE
    return train_(score, STEPS[distribution], drawn) if STEPS[distribution] else score


def train_(score: Tensor, steps: int, drawn: torch.Generator) -> Tensor:
    """Make of the first scores those that come of them in so many steps, in place and with little memory beside."""
    travelled = travel(steps).to(score.device)
    is_embedding = score.shape[0] > 8 * score.shape[1]  # no layer is as tall
    moving = seen(score.shape[0], steps, drawn) if is_embedding else torch.ones_like(score[:, 0], dtype=torch.bool)
    for rows, move in zip(score.split(1024), moving.split(1024), strict=True):
        moved = travelled[torch.randint(travelled.numel(), rows.shape, device=score.device, generator=drawn)]
        # Entries drawn from one pool would tie, as no trained entries do.
        moved *= 1 + 0.05 * torch.randn(rows.shape, device=score.device, generator=drawn)
        rows += moved * move[:, None]
    return score


def next_step(matrices: list[Tensor]) -> list[Tensor]:
    """The same scores one optimizer step later: each entry moves by at most about a learning rate."""
    drawn = generator(matrices[0].device, 2)
    return [
        matrix + LEARNING_RATE * (2 * torch.rand(matrix.shape, device=matrix.device, generator=drawn) - 1)
        for matrix in matrices
    ]


def magnitude_mask(weight: Tensor) -> Tensor:
    """The OMP mask, with which a search starts."""
    thresholds = tk.topk_threshold([weight], [keep((weight.shape[0], weight.shape[1]))], ranking="abs")
    return tk.binarize(weight, thresholds.values[0], thresholds.cuts[0], ranking="abs")


@cache
def travel(steps: int, entries: int = 1 << 15) -> Tensor:
    """How far entries go in that many steps of AdamW.

    A gradient is mostly noise with a slight drift, a tenth of it on average and different for each entry. Its scale
    does not matter to Adam.
    """
    drawn = generator(torch.device("cpu"), 3)
    drift = 0.1 * torch.randn(entries, generator=drawn)
    score = torch.zeros(entries, requires_grad=True)
    optimizer = torch.optim.AdamW([score], lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(steps):
        score.grad = drift + torch.randn(entries, generator=drawn)
        optimizer.step()
    return score.detach()


def frequency(rows: int, device: torch.device) -> Tensor:
    """How often each row of an embedding is looked up: tokens follow Zipf's law, and the first thousand of BERT's
    30,522 are unused.
    """
    frequency = 1 / torch.arange(1, rows + 1, device=device)
    frequency[: rows // 30] = 0
    return frequency / frequency.sum()


def tokens(count: int, rows: int, device: torch.device) -> Tensor:
    """Ids as they are in text, the frequent ones many times over."""
    return frequency(rows, device).multinomial(count, replacement=True, generator=generator(device))


def seen(rows: int, steps: int, drawn: torch.Generator) -> Tensor:
    """Which rows of an embedding had a gradient so far."""
    expected = frequency(rows, drawn.device) * (steps * TOKENS_PER_STEP)
    return torch.rand(rows, device=drawn.device, generator=drawn) < 1 - torch.exp(-expected)
