"""The baselines that need no training: one-shot magnitude pruning (omp) and random subnetworks (rand)."""

import time

from tamt.masking import apply_masks, magnitude_masks, random_masks
from tamt.search.setting import MASK_FILE, Search


def oneshot(search: Search) -> list[dict]:
    """Find the OMP or the random mask, local in each matrix, and measure it where there is dev text.

    omp keeps the largest |W| of each matrix (paper 3.2); rand keeps a uniformly random subset of the same size.
    """
    started = time.monotonic()
    weights = search.weights()
    if search.method == "omp":
        masks = magnitude_masks(weights, search.sparsity)
    else:
        masks = random_masks(weights, search.sparsity, search.seed)
    seconds = time.monotonic() - started
    search.save(masks, 0, MASK_FILE)
    apply_masks(search.student.model, masks)
    losses = search.dev_losses()
    if losses:
        search.folder.log(0, **{f"dev_{name}": value for name, value in losses.items()})
    return [search.result(masks, 0, seconds, losses)]
