"""Score distributions that tell a selection right from wrong: those of mask training, and the traps."""

from collections.abc import Callable

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial(n: int) -> Tensor:
    """After the initialisation from a magnitude mask: two values, and so n ties."""
    return torch.where(torch.rand(n, generator=generator()) < 0.3, 0.02, 0.0)


def trained(n: int) -> Tensor:
    """After some steps: two narrow humps, and the scores of tokens never seen still exactly 0 or 0.02."""
    noise = torch.randn(n, generator=generator(1)) * 1e-3
    return initial(n) + torch.where(torch.rand(n, generator=generator(2)) < 0.3, 0.0, noise)


def gaussian(n: int) -> Tensor:
    return torch.randn(n, generator=generator())


def constant(n: int) -> Tensor:
    return torch.full((n,), -3.5)


def signed_zeros(n: int) -> Tensor:
    return torch.where(torch.rand(n, generator=generator()) < 0.5, -0.0, 0.0)


def denormals(n: int) -> Tensor:
    return torch.randint(-5, 6, (n,), generator=generator()).float() * 2.0**-149


def infinities(n: int) -> Tensor:
    scores = gaussian(n)
    scores[torch.rand(n, generator=generator(1)) < 0.2] = torch.inf
    scores[torch.rand(n, generator=generator(2)) < 0.2] = -torch.inf
    return scores


def few_values(n: int) -> Tensor:
    return torch.randint(-300, 300, (n,), generator=generator()).float()


def ascending(n: int) -> Tensor:
    return gaussian(n).sort().values


def two_far_clusters(n: int) -> Tensor:
    """All but a handful alike: a sample sees next to nothing of the entries that decide."""
    scores = torch.zeros(n)
    scores[:: max(n // 7, 1)] = torch.arange(1, scores[:: max(n // 7, 1)].numel() + 1).float()
    return scores


DISTRIBUTIONS: list[Callable[[int], Tensor]] = [
    initial,
    trained,
    gaussian,
    constant,
    signed_zeros,
    denormals,
    infinities,
    few_values,
    ascending,
    two_far_clusters,
]


def bits(tensor: Tensor) -> Tensor:
    """The bits of a floating-point tensor, with one pattern for NaN, for comparisons in which -0 is not +0."""
    integers = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor).view(integers)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))
