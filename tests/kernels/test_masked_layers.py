"""masked_linear and masked_embedding, forward and backward, against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tamt_kernels as tk
from tamt_kernels import reference

from .scores import gaussian, same_bits


class StraightThrough(torch.autograd.Function):
    """W ⊙ m with the gradient of eq. 4, as its reader would write it."""

    @staticmethod
    def forward(ctx, score, weight, mask):
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None


def matrices(rows, columns, keep):
    score = gaussian(rows * columns).reshape(rows, columns).round(decimals=1)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))
    thresholds = tk.topk_threshold([score], [keep])
    return weight, score.requires_grad_(), thresholds.values[0], thresholds.cuts[0]


@pytest.mark.parametrize("bias", [None, torch.randn(6, generator=torch.Generator().manual_seed(3))])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,)])
def test_masked_linear(leading, bias):
    weight, score, value, cut = matrices(6, 9, 20)
    x = torch.randn(*leading, 9, generator=torch.Generator().manual_seed(2), requires_grad=True)
    y = tk.masked_linear(x, weight, score, value, cut, bias)
    assert torch.equal(y, reference.masked_linear(x, weight, score, value, cut, bias))
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad(y, (x, score), grad)
    mask = tk.binarize(score, value, cut)
    expected = torch.autograd.grad(F.linear(x, StraightThrough.apply(score, weight, mask), bias), (x, score), grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("rows", "columns"), [(0, 6), (4, 0), (0, 0)])
def test_a_weight_of_no_entries(rows, columns):
    weight, score, value, cut = matrices(rows, columns, 0)
    x = torch.ones(3, columns, requires_grad=True)
    y = tk.masked_linear(x, weight, score, value, cut)
    assert torch.equal(y, torch.zeros(3, rows))
    grads = torch.autograd.grad(y.sum(), (x, score))
    assert [each.shape for each in grads] == [x.shape, score.shape]
    ids = torch.zeros(2 if rows else 0, dtype=torch.int64)
    found = tk.masked_embedding(ids, weight, score, value, cut)
    assert found.shape == (len(ids), columns)
    assert torch.equal(torch.autograd.grad(found.sum(), score)[0], torch.zeros(rows, columns))


def test_the_weight_gets_no_gradient():
    weight, score, value, cut = matrices(6, 9, 20)
    weight.requires_grad_()
    tk.masked_linear(torch.ones(2, 9), weight, score, value, cut).sum().backward()
    assert weight.grad is None
    assert score.grad is not None


def test_the_gradient_of_a_pruned_score_is_not_zero():
    weight, score, value, cut = matrices(6, 9, 20)
    tk.masked_linear(torch.ones(1, 9), weight, score, value, cut).sum().backward()
    assert torch.equal(score.grad, weight)


class CastsOf(TorchDispatchMode):
    """Counts the casts of tensors of a shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_autocast_masks_and_casts_at_once():
    weight, score, value, cut = matrices(6, 9, 20)
    x = torch.ones(2, 9)
    with torch.autocast("cpu", torch.bfloat16), CastsOf(weight.shape) as casts:
        y = tk.masked_linear(x, weight, score, value, cut)
    assert casts.count == 0
    assert y.dtype == torch.bfloat16
    masked = tk.mask_weight(weight, score, value, cut, torch.bfloat16)
    assert torch.equal(y, F.linear(x.bfloat16(), masked))
    y.sum().backward()
    assert score.grad.dtype == torch.float32


IDS = {
    "scalar": torch.tensor(3),
    "some": torch.tensor([[1, 1, 4], [0, 7, 1]]),
    "int32": torch.tensor([2, 2, 5], dtype=torch.int32),
    "none": torch.zeros(0, 3, dtype=torch.int64),
    "many": torch.arange(4000).reshape(40, 100) % 8,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding_idx", [None, 1, -1])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_masked_embedding(ids, padding_idx, dtype):
    weight, score, value, cut = matrices(8, 37, 100)
    weight = weight.to(dtype)
    y = tk.masked_embedding(ids, weight, score, value, cut, padding_idx)
    assert same_bits(y, reference.masked_embedding(ids, weight, score, value, cut))
    assert same_bits(y, reference.mask_weight(weight, score, value, cut)[ids.long()])
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    (found,) = torch.autograd.grad(y, score, grad)
    mask = tk.binarize(score, value, cut)
    rows = F.embedding(ids, StraightThrough.apply(score, weight.float(), mask), padding_idx)
    (expected,) = torch.autograd.grad(rows, score, grad.float())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_rows_not_looked_up_get_exactly_no_gradient():
    weight, score, value, cut = matrices(8, 37, 100)
    weight[6] = torch.inf  # 0 · ∞ would be NaN
    tk.masked_embedding(torch.tensor([1, 3]), weight, score, value, cut).sum().backward()
    untouched = [0, 2, 4, 5, 6, 7]
    assert same_bits(score.grad[untouched], torch.zeros(6, 37))
    assert torch.equal(score.grad[[1, 3]], weight[[1, 3]])


def test_masked_embedding_of_a_half_score():
    weight, score, *_ = matrices(8, 37, 100)
    half = score.detach().bfloat16()
    thresholds = tk.topk_threshold([half], [100])
    ids = IDS["some"]
    found = tk.masked_embedding(ids, weight, half, thresholds.values[0], thresholds.cuts[0])
    assert same_bits(found, tk.mask_weight(weight, half, thresholds.values[0], thresholds.cuts[0])[ids])


@pytest.mark.parametrize("bad", [-1, 8])
def test_an_id_out_of_range(bad):
    weight, score, value, cut = matrices(8, 37, 100)
    with pytest.raises(IndexError):
        tk.masked_embedding(torch.tensor([0, bad]), weight, score, value, cut)


def test_the_gradient_of_x_may_be_differentiated_again():
    weight, score, value, cut = matrices(6, 9, 20)
    x, grad = torch.randn(4, 9, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    towards = torch.randn(4, 9)
    found, expected = [], []
    for layer, grads in (
        (lambda: tk.masked_linear(x, weight, score, value, cut), found),
        (lambda: torch.ops.tamt_kernels.masked_matmul(x, weight, score, value, cut), found),
        (lambda: F.linear(x, StraightThrough.apply(score, weight, tk.binarize(score, value, cut))), expected),
    ):
        (grad_x,) = torch.autograd.grad(layer(), x, grad, create_graph=True)
        grads.append(torch.autograd.grad(grad_x, (grad, score), towards))
    for each in found:
        torch.testing.assert_close(each, expected[0])


def test_double_backward_is_refused():
    weight, score, value, cut = matrices(6, 9, 20)
    x = torch.ones(2, 9, requires_grad=True)
    layers = (
        lambda: tk.masked_linear(x, weight, score, value, cut).square().sum(),
        lambda: tk.masked_embedding(torch.tensor([1]), weight, score, value, cut).square().sum(),
    )
    for layer in layers:
        (grad,) = torch.autograd.grad(layer(), score, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            grad.sum().backward()


@pytest.mark.parametrize("absolute", [False, True])
def test_masked_matmul_and_its_gradients(absolute):
    weight, score, value, cut = matrices(6, 9, 20)
    x = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(2), requires_grad=True)
    bias = torch.randn(6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    y = torch.ops.tamt_kernels.masked_matmul(x, weight, score, value, cut, bias, absolute)
    mask = reference.binarize(score, value, cut, absolute)
    expected = F.linear(x, StraightThrough.apply(score, weight, mask), bias)
    torch.testing.assert_close(y, expected)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
    inputs = x, score, bias
    for a, b in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)
