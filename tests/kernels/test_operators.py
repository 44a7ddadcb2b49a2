"""Every operation is a torch operator in good standing."""

import pytest
import torch
from torch.library import opcheck

import tamt_kernels as tk
from tamt_kernels.backend.library import OPERATORS

from .scores import gaussian


def samples():
    score, weight = gaussian(63).reshape(7, 9), gaussian(63).flip(0).reshape(7, 9)
    value, cut = torch.tensor(0.25), torch.tensor(40)
    trained = score.clone().requires_grad_()
    ids = torch.tensor([[1, 2], [2, 6]])
    yield "topk_threshold", ([score, weight], [3, 60])
    yield "topk_threshold", ([score.t(), weight.half()], [3, 60], True)
    yield "binarize", (score, value, cut)
    yield "binarize", (score.t(), value, cut, True)
    yield "pack_mask", (score > 0,)
    yield "unpack_mask", (tk.pack_mask(score > 0), [7, 9])
    yield "prune_", ([weight.clone(), weight.half().t()], [tk.pack_mask(score > 0)] * 2)
    yield "mask_weight", (weight, trained, value, cut)
    yield "mask_weight", (weight.t(), trained.t(), value, cut, torch.bfloat16, True)
    thresholds = torch.tensor([0.25, 0.5]), torch.tensor([40, 7])
    yield "mask_weights", ([weight, weight.t()], [trained, trained.t()], *thresholds, torch.float32)
    yield "mask_weights", ([weight, weight.half()], [score, score], *thresholds, torch.bfloat16, True, True)
    yield "topk_threshold_unchecked", ([score, weight / 0], [3, 60])
    yield "topk_threshold_unchecked", ([score.t(), weight.half()], [3, 60], thresholds[0], True)
    step = ([score.clone() for _ in range(5)] for _ in range(2))
    for (grad, trained_score, mean, square, masked), renew in zip(step, (True, False), strict=True):
        lists = [grad, grad], [weight, weight.half()], [trained_score, score.clone()], [mean, mean.clone()]
        lists = *lists, [square.abs(), square.abs()], [masked, masked.clone()]
        rates = torch.tensor([1.0, 0.01, 1.1, 1.0])
        each = [tensor.clone() for tensor in thresholds]
        yield "mask_adamw", (*lists, *each, [3, 60], rates, 0.9, 0.999, 1e-8, renew)
    yield "pattern_mask", (score, 2, 3)
    yield "pattern_mask", (score[:, :8].half().t(), 1, 7, True)
    yield "pattern_weight", (weight, trained, 2, 3)
    yield "pattern_weight", (weight.half().t(), trained.t(), 1, 7, torch.bfloat16, True)
    lists = *([score.clone(), score.clone()] for _ in range(4)), [score.square(), score.square()], [score.clone()] * 2
    yield "pattern_adamw", (*lists, 2, 3, torch.tensor([1.0, 0.01, 1.1, 1.0]), 0.9, 0.999, 1e-8)
    yield "cosine", (score, trained)
    yield "cosine", (score.half().t(), weight.bfloat16().t())
    yield "cosine_backward", (torch.ones(7), score, weight.half())
    yield "gradient_norm", ([score, score.half()], [weight, weight])
    yield "ste_backward", (score, weight)
    yield "ste_backward", (score.t(), weight.t().half(), torch.bfloat16)
    yield "ste_backward_all", ([score, weight.t()], [weight, score.t()], torch.float32)
    yield "ste_backward_all", ([score.half(), weight], [weight, score.bfloat16()], torch.float16)
    yield "ste_backward_into", (torch.ones(7, 9), score, weight)
    yield "ste_backward_into", (torch.ones(9, 7).half().t(), score, weight.half(), False, True)
    yield "linear", (torch.ones(2, 3, 9, requires_grad=True), trained, torch.ones(7, requires_grad=True))
    yield "linear", (torch.ones(3, 9).half(), weight.half())
    yield "linear_backward_x", (torch.ones(2, 3, 7, requires_grad=True), trained)
    yield "linear_backward_weight", (torch.ones(2, 3, 7, requires_grad=True), torch.ones(2, 3, 9, requires_grad=True))
    x = torch.linspace(-1, 1, 18).reshape(2, 9).requires_grad_()
    yield "masked_matmul", (x, weight, trained, value, cut)
    yield "masked_matmul", (x.half(), weight.half(), trained, value, cut, torch.ones(7).half(), True)
    yield "masked_matmul_backward_x", (torch.ones(3, 2, 7), weight, score, value, cut)
    yield "masked_matmul_backward_score", (torch.ones(2, 7).half(), x.detach().half(), weight, torch.float32)
    yield "masked_embedding", (ids, weight, trained, value, cut)
    yield "masked_embedding", (ids.int().t(), weight.half(), trained, value, cut, 2, True)
    yield "masked_embedding_backward", (torch.ones(2, 2, 9), ids, weight, 2, torch.float32)
    yield "masked_embedding_backward", (torch.ones(2, 2, 9).half(), ids, weight, None, torch.bfloat16)
    sparse = tk.pack_sparse(weight, score > 0)
    values, bias = sparse.values.clone().requires_grad_(), torch.ones(7, requires_grad=True)
    yield "sparse_linear", (x, values, *sparse.pattern, 7, bias)
    yield "sparse_linear", (x.detach().half(), values.detach().bfloat16(), *sparse.pattern, 7)
    yield "sparse_linear_backward_x", (torch.ones(3, 2, 7, requires_grad=True), values, *sparse.pattern, 9)
    yield "sparse_linear_backward_values", (torch.ones(2, 7, requires_grad=True), x, *sparse.pattern, torch.float32)
    yield "sparse_embedding", (ids, values, *sparse.pattern, 7, 9)
    yield "sparse_embedding", (ids.int().t(), values, *sparse.pattern, 7, 9, 2)
    grad = torch.ones(2, 2, 9, requires_grad=True)
    yield "sparse_embedding_backward", (grad, ids, *sparse.pattern, 7, None)
    yield "sparse_embedding_backward", (grad.detach().bfloat16(), ids, *sparse.pattern, 7, 2)


@pytest.mark.parametrize(("name", "arguments"), list(samples()))
def test_opcheck(name, arguments):
    opcheck(getattr(torch.ops.tamt_kernels, name).default, arguments)


def test_every_operator_is_checked():
    assert {name for name, _ in samples()} == set(OPERATORS)
