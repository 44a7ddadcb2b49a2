"""mask_weights, the masked weights of many matrices at once."""

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels import reference

from .scores import gaussian, same_bits
from .test_masks import DTYPES, awkward_weight

SHAPES = [(33, 20), (), (0, 4), (256,), (7, 37)]


def matrices():
    scores = [gaussian(torch.Size(shape).numel()).reshape(shape).round(decimals=1) for shape in SHAPES]
    weights = [awkward_weight(shape, torch.float32) for shape in SHAPES]
    return weights, scores, tk.topk_threshold(scores, [score.numel() // 3 for score in scores])


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_each_is_that_of_mask_weight(dtype):
    weights, scores, thresholds = matrices()
    found, packed = tk.mask_weights(weights, scores, thresholds, dtype, pack=True)
    for w, s, value, cut, masked, bits in zip(weights, scores, *thresholds, found, packed, strict=True):
        assert same_bits(masked, tk.mask_weight(w, s, value, cut, dtype))
        assert torch.equal(bits, tk.pack_mask(tk.binarize(s, value, cut)))
    without, none = tk.mask_weights(weights, scores, thresholds, dtype)
    assert none == []
    assert all(same_bits(a, b) for a, b in zip(without, found, strict=True))


@pytest.mark.parametrize("pack", [False, True])
def test_equals_the_definition(pack):
    weights, scores, thresholds = matrices()
    arguments = weights, scores, *thresholds, torch.float16, pack, True
    found, expected = torch.ops.tamt_kernels.mask_weights(*arguments), reference.mask_weights(*arguments)
    assert same_bits(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_the_gradient_is_that_of_mask_weight():
    weights, scores, thresholds = matrices()
    scores = [score.requires_grad_() for score in scores]
    masked, _ = tk.mask_weights(weights, scores, thresholds)
    grads = torch.autograd.grad(sum((each * 3).sum() for each in masked), scores)
    for weight, grad in zip(weights, grads, strict=True):
        assert same_bits(grad, 3 * weight)


def test_nothing_of_nothing():
    assert tk.mask_weights([], [], tk.topk_threshold([], [])) == ([], [])
