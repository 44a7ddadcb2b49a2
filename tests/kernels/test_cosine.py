"""The cosine and its gradient against torch's own."""

import pytest
import torch
import torch.nn.functional as F

import tamt_kernels as tk

from .scores import gaussian
from .test_masks import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (7,), (2, 3, 768), (3, 1500)])
def test_cosine(shape, dtype):
    constant = gaussian(torch.Size(shape).numel()).reshape(shape).to(dtype)
    trained = constant.float().roll(1, dims=-1).add_(0.5).requires_grad_()
    found = tk.cosine(constant, trained)
    expected = F.cosine_similarity(constant.float(), trained, dim=-1)
    torch.testing.assert_close(found, expected)
    grad = torch.linspace(-1, 2, found.numel()).reshape(found.shape)
    torch.testing.assert_close(*(torch.autograd.grad(each, trained, grad)[0] for each in (found, expected)))


def test_the_gradient_has_the_type_of_what_is_trained():
    trained = torch.ones(3, 8, dtype=torch.bfloat16, requires_grad=True)
    cosine = tk.cosine(torch.arange(24.0).reshape(3, 8), trained)
    assert cosine.dtype == torch.float32
    cosine.sum().backward()
    assert trained.grad.dtype == torch.bfloat16


def test_rows_are_small_one_by_one():
    constant, trained = torch.tensor([[1e-6, 0], [1e-9, 0]]), torch.tensor([[1e-6, 0], [1e3, 0]])
    assert tk.cosine(constant, trained).tolist() == pytest.approx([1, 0.1])


def test_rows_of_zeros():
    constant, trained = torch.zeros(2, 4), torch.ones(2, 4)
    trained[1] = 0
    trained.requires_grad_()
    cosine = tk.cosine(constant, trained)
    cosine.sum().backward()
    assert cosine.tolist() == [0, 0]
    assert trained.grad.count_nonzero() == 0


def test_a_constant_from_inference_mode():
    with torch.inference_mode():
        constant = torch.tensor([[3.0, 4.0]])
    trained = torch.tensor([[4.0, 3.0]], requires_grad=True)
    cosine = tk.cosine(constant, trained)
    cosine.backward()
    torch.testing.assert_close(cosine, torch.tensor([0.96]))
    torch.testing.assert_close(trained.grad, torch.tensor([[3.0, 4.0]]) / 25 - 0.96 * torch.tensor([[4.0, 3.0]]) / 25)


def test_a_constant_that_changes_before_the_backward_pass_is_noticed():
    constant, trained = torch.ones(1, 2), torch.ones(1, 2, requires_grad=True)
    cosine = tk.cosine(constant, trained)
    constant.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cosine.sum().backward()


def test_a_row_that_is_no_number_has_no_gradient_that_is():
    constant, trained = torch.tensor([[1.0, 2.0]]), torch.tensor([[torch.nan, 1.0]], requires_grad=True)
    cosine = tk.cosine(constant, trained)
    cosine.sum().backward()
    assert cosine.isnan().all()
    assert trained.grad.isnan().all()


def test_strided():
    constant, trained = gaussian(60).reshape(5, 12).t(), gaussian(60).reshape(12, 5).flip(0)
    torch.testing.assert_close(tk.cosine(constant, trained), F.cosine_similarity(constant, trained, dim=-1))
