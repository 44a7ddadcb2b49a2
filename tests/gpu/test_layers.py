"""masked_linear and masked_embedding on the GPU, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from kernels.scores import same_bits
from kernels.test_masked_layers import IDS, matrices

import tamt_kernels as tk
from tamt_kernels import reference

# What rounding to a type leaves of ‖found − expected‖ / ‖expected‖, expected in float64.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def distance(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 16, 64, 300, 4096])
@pytest.mark.parametrize("shape", [(96, 64), (131, 77)])
def test_masked_linear(shape, rows, bias, dtype):
    weight, score, value, cut = (each.detach().cuda() for each in matrices(*shape, shape[0] * shape[1] // 3))
    weight = weight.to(dtype)
    score.requires_grad_()
    x = torch.randn(rows, shape[1], device="cuda", dtype=dtype).requires_grad_()
    b = torch.randn(shape[0], device="cuda", dtype=dtype) if bias else None
    y = tk.masked_linear(x, weight, score, value, cut, b)
    grad = torch.randn_like(y)
    dx, ds = torch.autograd.grad(y, (x, score), grad)
    masked = reference.mask_weight(weight, score.detach(), value, cut).double()
    assert y.dtype == dtype
    assert ds.dtype == torch.float32
    expected = F.linear(x.double(), masked, None if b is None else b.double())
    assert distance(y, expected) < ROUNDING[dtype]
    assert distance(dx, grad.double() @ masked) < ROUNDING[dtype]
    assert distance(ds, (grad.double().t() @ x.double()) * weight.double()) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rows", [1, 17, 64, 1000, 16384])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_that_masks_as_it_goes(transposed, rows, dtype):
    """At every number of rows, also where masked_linear would choose another way."""
    weight, score, value, cut = (each.detach().cuda() for each in matrices(131, 77, 3000))
    if transposed:
        weight, score = weight.t().contiguous().t(), score.t().contiguous().t()
    weight = weight.to(dtype)
    score.requires_grad_()
    x = torch.randn(rows, 77, device="cuda", dtype=dtype).requires_grad_()
    y = torch.ops.tamt_kernels.masked_matmul(x, weight, score, value, cut)
    grad = torch.randn_like(y)
    dx, ds = torch.autograd.grad(y, (x, score), grad)
    masked = reference.mask_weight(weight, score.detach(), value, cut).double()
    assert distance(y, x.double() @ masked.t()) < ROUNDING[dtype]
    assert distance(dx, grad.double() @ masked) < ROUNDING[dtype]
    assert distance(ds, (grad.double().t() @ x.double()) * weight.double()) < ROUNDING[dtype]


@pytest.mark.parametrize("leading", [(), (0,), (2, 3)])
def test_masked_linear_of_any_leading_shape_and_stride(leading):
    weight, score, value, cut = (each.detach().cuda() for each in matrices(96, 64, 2000))
    x = torch.randn(*leading, 128, device="cuda")[..., ::2].requires_grad_()
    for w, s in ((weight, score), (weight.t().contiguous().t(), score.t().contiguous().t())):
        s = s.detach().requires_grad_()
        y = tk.masked_linear(x, w, s, value, cut)
        assert y.shape == (*leading, 96)
        torch.testing.assert_close(y, F.linear(x, reference.mask_weight(w, s.detach(), value, cut)))
        y.sum().backward()
        assert s.grad.shape == s.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    weight, score, value, cut = (each.detach().cuda() for each in matrices(96, 64, 2000))
    score.requires_grad_()
    x = torch.randn(10, 64, device="cuda")
    with torch.autocast("cuda", dtype):
        y = tk.masked_linear(x, weight, score, value, cut)
    assert y.dtype == dtype
    masked = reference.mask_weight(weight, score.detach(), value, cut)
    assert distance(y, F.linear(x.double(), masked.double())) < ROUNDING[dtype]
    y.sum().backward()
    assert score.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_masked_embedding(ids, padding_idx, dtype):
    weight, score, value, cut = (each.detach() for each in matrices(8, 37, 100))
    weight = weight.to(dtype)
    trained = score.cuda().requires_grad_()
    y = tk.masked_embedding(ids.cuda(), weight.cuda(), trained, value.cuda(), cut.cuda(), padding_idx)
    assert same_bits(y.detach().cpu(), reference.masked_embedding(ids, weight, score, value, cut))
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    (found,) = torch.autograd.grad(y, trained, grad.cuda())
    expected = reference.masked_embedding_backward(grad, ids, weight, padding_idx, torch.float32)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-4)
    untouched = torch.ones(8, dtype=torch.bool)
    untouched[ids.reshape(-1).long()] = False
    assert torch.count_nonzero(found.cpu()[untouched]) == 0
