"""The 108 million entries of BERT-base at once, with the ties of mask training."""

import numpy as np
import pytest
import torch

import tamt_kernels as tk
from benchmarks import scores
from tamt_kernels import reference

CUDA = torch.device("cuda")


def kth_largest(score, keep):
    """By numpy on the CPU; torch's own kthvalue takes seconds for so many."""
    flat = score.reshape(-1).cpu().numpy()
    return float(np.partition(flat, flat.size - keep)[flat.size - keep])


@pytest.mark.parametrize("distribution", scores.DISTRIBUTIONS)
def test_bert_base(distribution):
    shapes = scores.bert_shapes()
    matrices = scores.scores(distribution, shapes, CUDA)
    keep = [scores.keep(shape) for shape in shapes]
    cold = tk.topk_threshold(matrices, keep)
    warm = tk.topk_threshold(scores.next_step(matrices), keep, last=cold)
    again = tk.topk_threshold(matrices, keep, last=warm)
    assert torch.equal(cold.values, again.values)
    assert torch.equal(cold.cuts, again.cuts)
    for i in (0, 1, 5, 72):
        assert cold.values[i].item() == kth_largest(matrices[i], keep[i])
    weights = [scores.weight(shape, CUDA, i) for i, shape in enumerate(shapes)]
    masked, packed = tk.mask_weights(weights, matrices, cold, torch.bfloat16, pack=True)
    for i, (weight, score) in enumerate(zip(weights, matrices, strict=True)):
        mask = tk.binarize(score, cold.values[i], cold.cuts[i])
        assert int(mask.sum()) == keep[i]
        assert torch.equal(mask, reference.binarize(score, cold.values[i], cold.cuts[i]))
        assert torch.equal(masked[i], torch.where(mask, weight, 0.0).bfloat16())
        assert torch.equal(packed[i], tk.pack_mask(mask))


@pytest.mark.parametrize("distribution", ["OMP init", scores.USUAL])
def test_one_matrix_of_as_many_entries(distribution):
    shapes = scores.bert_shapes()
    score = torch.cat([each.reshape(-1) for each in scores.scores(distribution, shapes, CUDA)])
    keep = scores.keep((score.numel(), 1))
    thresholds = tk.topk_threshold([score], [keep])
    value, cut = thresholds.values[0], thresholds.cuts[0]
    assert value.item() == kth_largest(score, keep)
    mask = tk.binarize(score, value, cut)
    assert int(mask.sum()) == keep
    ties = (score == value).nonzero().reshape(-1)
    assert torch.equal(mask[ties], torch.arange(ties.numel(), device="cuda") < keep - int((score > value).sum()))
    weight = torch.randn_like(score)
    assert torch.equal(tk.ste_backward(weight, score), weight * score)
    assert torch.equal(tk.unpack_mask(tk.pack_mask(mask), mask.shape), mask)
