"""The baselines that need no training: one-shot magnitude pruning (omp) and random subnetworks (rand)."""

import time
from collections.abc import Callable

from torch import Tensor

from tamt.masks.file import MASK_FILE
from tamt.masks.masking import Masks, apply_masks, magnitude_masks, random_masks
from tamt.search.search import Search


def magnitude(search: Search) -> list[dict]:
    """Keep the largest |W| of each matrix (OMP, paper 3.2)."""
    return oneshot(search, lambda weights: magnitude_masks(weights, search.sparsity))


def at_random(search: Search) -> list[dict]:
    """Keep a uniformly random subset of each matrix."""
    return oneshot(search, lambda weights: random_masks(weights, search.sparsity, search.options.seed))


def oneshot(search: Search, find: Callable[[dict[str, Tensor]], Masks]) -> list[dict]:
    """Save the masks that `find` returns for the prunable weights, and measure them where there is dev text."""
    started = time.monotonic()
    masks = find(search.weights())
    seconds = time.monotonic() - started
    search.save(masks, 0, MASK_FILE)
    apply_masks(search.student.model, masks)
    losses = search.dev_losses()
    if losses:
        search.folder.log(0, **{f"dev_{name}": value for name, value in losses.items()})
    return [search.result(masks, 0, seconds, losses)]
