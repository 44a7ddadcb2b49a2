"""The baselines that need no training: one-shot magnitude pruning (omp) and random subnetworks (rand)."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from tamt.masks.file import MASK_FILE
from tamt.masks.masking import Masks, keep_of
from tamt.search.search import Search


def magnitude(search: Search) -> list[dict]:
    """Keep the largest |W| of each matrix (OMP, paper 3.2), or the groups of largest norm."""
    return oneshot(search, lambda _: search.magnitude_masks())


def at_random(search: Search) -> list[dict]:
    """Keep a uniformly random subset of each matrix, or of the groups."""
    return oneshot(search, lambda _: search.random_masks())


def drop_layers(search: Search) -> list[dict]:
    """Drop the first or the last layers, or alternate ones, of which the first is kept."""
    count, which = search.student.model.config.num_hidden_layers, search.options.drop or "last"
    keep = keep_of(count, search.options.share())
    kept = {
        "first": range(count - keep, count),
        "last": range(keep),
        "alternate": [place * count // keep for place in range(keep)],
    }[which]
    mask = torch.zeros(count, dtype=torch.bool)
    mask[list(kept)] = True
    return oneshot(search, lambda _: {"layers": mask})


def oneshot(search: Search, find: Callable[[dict[str, Tensor]], Masks]) -> list[dict]:
    """Save the masks that `find` returns for the prunable weights, and measure them where there is dev text."""
    started = time.monotonic()
    masks = find(search.weights())
    seconds = time.monotonic() - started
    search.save(masks, 0, MASK_FILE)
    search.apply(masks)
    return [search.result(masks, 0, seconds, search.log_dev_losses(0))]
