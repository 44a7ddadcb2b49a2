"""The mask of one score: the kernel of ``mask_weight`` without a weight."""

import torch
from torch import Tensor

from tamt_kernels.triton_kernels.common import TILE, launch, tiles_of
from tamt_kernels.triton_kernels.mask_weight import WARPS, mask_kernel


def binarize(score: Tensor, value: Tensor, cut: Tensor, absolute: bool = False) -> Tensor:
    mask = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    score, size = score.contiguous(), score.numel()
    grid = (tiles_of(size, TILE),)
    launch(
        mask_kernel, grid, None, score, value, cut, None, mask.view(torch.uint8), size,
        ABSOLUTE=absolute, TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
    return mask
