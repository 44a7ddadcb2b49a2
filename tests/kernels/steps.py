"""Steps of ``MaskAdamW`` as tensors, and a check of the operator against its definition, bit for bit."""

import copy
from collections.abc import Sequence
from contextlib import contextmanager

import pytest
import torch
from torch.utils._pytree import tree_map_only

from tamt_kernels import reference

from .scores import generator, same_bits, trained
from .test_masks import awkward_weight

SHAPES = [(33, 10), (), (0, 4), (256,), (7, 37)]
SCORES, MASKED, VALUES, CUTS = 2, 5, 6, 7  # positions among the arguments


def a_step(grad_dtype, weight_dtype, result, shapes: Sequence[tuple[int, ...]] = SHAPES):
    """The arguments of a step from scores as they are trained, up to the cuts, and ``keep``."""
    drawn = generator()
    scores = [trained(torch.Size(shape).numel()).reshape(shape).clone() for shape in shapes]
    weights = [awkward_weight(shape, weight_dtype).nan_to_num(0.5, 2.0, -2.0) for shape in shapes]
    means = [torch.randn(shape, generator=drawn) * 1e-3 for shape in shapes]
    squares = [torch.rand(shape, generator=drawn) * 1e-5 for shape in shapes]
    offsets, total = reference.group_offsets([each.numel() for each in scores])
    flat = torch.empty(total, dtype=result)
    masked = [flat[at : at + each.numel()].view(each.shape) for each, at in zip(scores, offsets, strict=True)]
    keep = [each.numel() // 3 for each in scores]
    return [gradients(grad_dtype, 0, shapes), weights, scores, means, squares, masked,
            *reference.topk_threshold(scores, keep), keep]  # fmt: skip


def gradients(dtype, seed, shapes=SHAPES):
    drawn = generator(seed + 100)
    return [torch.randn(shape, generator=drawn).to(dtype) for shape in shapes]


def rates_of(step, lr=0.003):
    return [0.8, lr / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 0.9]


@contextmanager
def exact_roots():
    """Rounds roots correctly. MKL, which takes the definition's on a CPU, rounds some of them wrong; no kernel does."""
    root = torch.Tensor.sqrt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "sqrt", lambda tensor: root(tensor.double()).to(tensor.dtype))
        yield


def check_step(step, rates, betas=(0.9, 0.999), eps=1e-8, renew=True, absolute=False, device="cpu", grad_rows=None):
    """Take a step by the operator on a device and, in place, by the definition: both write the same bits."""
    found = copy.deepcopy(step)
    found_grad_rows = grad_rows
    if device != "cpu":
        found, found_grad_rows = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (found, grad_rows))
    rates, options = torch.tensor(rates), (*betas, eps, renew, absolute)
    torch.ops.tamt_kernels.mask_adamw(*found, rates.to(device), *options, found_grad_rows)
    with exact_roots():
        reference.mask_adamw(*step, rates, *options, grad_rows)
    for position in range(SCORES, MASKED + 1):
        for mine, other in zip(found[position], step[position], strict=True):
            assert same_bits(mine.cpu(), other)
    assert same_bits(found[VALUES].cpu(), step[VALUES])
    assert torch.equal(found[CUTS].cpu(), step[CUTS])
