"""Dense linear layers: the right products by every library, chosen by measurement, by force or by a former run."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tamt_kernels as tk
from tamt_kernels.backend import choices, onednn, product_library
from tamt_kernels.ops.linear import overwrite_linear_backward_weight

from . import fresh

PRODUCTS = ("linear", "linear_backward_x", "linear_backward_weight")
needs_onednn = pytest.mark.skipif(onednn.problem() is not None, reason=f"no oneDNN: {onednn.problem()}")


@pytest.fixture
def unchosen(monkeypatch, tmp_path):
    """No library is chosen yet, in this process or in the cache file."""
    monkeypatch.setenv("TAMT_CACHE", str(tmp_path))
    monkeypatch.delenv("TAMT_PRODUCTS", raising=False)
    monkeypatch.setattr(product_library, "_chosen", None)
    monkeypatch.setattr(product_library, "_only_torch", False)
    for cached in (choices.of, choices._read, product_library.default):
        cached.cache_clear()
    yield tmp_path
    for cached in (choices.of, choices._read, product_library.default):
        cached.cache_clear()


@pytest.fixture(
    params=["eager", *(pytest.param(name, marks=needs_onednn) for name in ("onednn", "onednn_copies"))],
)
def library(request, unchosen, monkeypatch):
    """Each library in turn computes all products."""
    monkeypatch.setenv("TAMT_PRODUCTS", request.param)
    return request.param


def operands(*leading, width=37, out=53):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*leading, width, generator=generator)
    weight = torch.randn(out, width, generator=generator)
    bias = torch.randn(out, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * max(expected.abs().max().item(), 1))


@pytest.mark.parametrize("leading", [(1,), (7,), (2, 3), (2, 1, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_right(library, leading, with_bias):
    x, weight, bias = operands(*leading)
    bias = bias if with_bias else None
    exact = [each.detach().double().requires_grad_() for each in (x, weight, *((bias,) if with_bias else ()))]
    found, expected = tk.linear(x, weight, bias), F.linear(*exact)
    close(found, expected)
    factors = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    (found * factors).sum().backward()
    (expected * factors.double()).sum().backward()
    for tensor, right in zip((x, weight, bias), exact, strict=False):
        close(tensor.grad, right.grad)


def test_operands_may_have_any_strides(library):
    x = torch.randn(6, 5, 4).transpose(0, 2)
    weight = torch.randn(6, 9).t()
    bias = torch.randn(9, 2)[:, 0]
    close(tk.linear(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()))
    grad = torch.randn(9, 5, 4).transpose(0, 2)
    close(tk.linear_backward_x(grad, weight), grad.double() @ weight.double())
    expected = grad.double().flatten(0, 1).t() @ x.double().flatten(0, 1)
    close(tk.linear_backward_weight(grad, x), expected)
    memory = torch.empty(9, 6)
    overwrite_linear_backward_weight(memory, grad, x)
    close(memory, expected)


def test_the_gradient_can_be_differentiated_again(library):
    x, weight, bias = operands(4)
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]

    def second(tensors, linear):
        (grad,) = torch.autograd.grad(linear(*tensors).pow(3).sum(), tensors[0], create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), tensors)

    for found, expected in zip(second((x, weight, bias), tk.linear), second(exact, F.linear), strict=True):
        close(found, expected)


@pytest.mark.parametrize("leading", [(4,), (2, 3), (2, 3, 2)])
def test_the_output_can_be_changed_in_place(library, leading):
    x, weight, bias = operands(*leading)
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    torch.relu_(tk.linear(x, weight, bias)).sum().backward()
    torch.relu(F.linear(*exact)).sum().backward()
    for tensor, right in zip((x, weight, bias), exact, strict=True):
        close(tensor.grad, right.grad)


def test_no_rows_are_no_product(library):
    x, weight, bias = operands(0)
    output = tk.linear(x, weight, bias)
    output.sum().backward()
    assert output.shape == (0, 53)
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs_own(library, dtype):
    x, weight, bias = (each.detach().to(dtype) for each in operands(5))
    assert torch.equal(tk.linear(x, weight, bias), F.linear(x, weight, bias))


def test_operands_that_do_not_fit_are_named_by_torch(library):
    x, weight, bias = operands(5)
    for case in (
        (x, weight[:, 1:], bias),
        (x, weight, bias[1:]),
        (x, weight, bias.double()),
        (x, weight.bfloat16(), None),
    ):
        with pytest.raises(RuntimeError) as expected:
            F.linear(*case)
        with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
            tk.linear(*case)


def test_autocast_is_torchs_own(library):
    x, weight, bias = operands(5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tk.linear(x, weight, bias), F.linear(x, weight, bias))


def test_the_same_choice_gives_the_same_bits(library):
    x, weight, bias = operands(64)
    assert torch.equal(tk.linear(x, weight, bias), tk.linear(x, weight, bias))


def test_the_gradient_of_a_masked_weight_is_written_over_it(library):
    torch.manual_seed(0)
    dense = nn.Linear(24, 16)
    layer = tk.MaskedLinear.from_linear(copy.deepcopy(dense), keep=100)
    optimizer = tk.MaskAdamW(layer, lr=1e-3, overwrite=True)
    x = torch.randn(8, 24)
    with torch.no_grad():
        expected = 2 * layer(x).double().t() @ x.double()
    layer(x).pow(2).sum().backward()
    close(layer.masked.tensor.grad, expected)
    assert layer.masked.holds_gradient
    optimizer.step()


def test_a_models_layers_are_made_fast_in_place(library):
    model = nn.Sequential(nn.Linear(37, 53), nn.GELU(), nn.Linear(53, 5))
    x, state = operands(9)[0], copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model).double()(x.double())
    tk.use_fast_products(model)
    close(model(x), expected.detach())
    assert all(isinstance(model[i], nn.Linear) for i in (0, 2))
    assert model.state_dict().keys() == state.keys()
    close(copy.deepcopy(model)(x), expected.detach())


def test_a_library_that_does_not_exist_is_refused(unchosen, monkeypatch):
    monkeypatch.setenv("TAMT_PRODUCTS", "mkl")
    with pytest.raises(RuntimeError, match="TAMT_PRODUCTS is 'mkl' but must be eager, onednn or onednn_copies"):
        product_library.chosen()


def test_wrong_products_of_onednn_are_not_used(unchosen, monkeypatch):
    monkeypatch.setattr(onednn, "linear", lambda x, weight, bias=None: F.linear(x, weight, bias) * 1.001)
    onednn.problem.cache_clear()
    try:
        assert "wrong" in onednn.problem()
        assert product_library.chosen() == dict.fromkeys(PRODUCTS, ("eager",) * 3)
        product_library.default.cache_clear()
        monkeypatch.setattr(product_library, "_chosen", None)
        monkeypatch.setenv("TAMT_PRODUCTS", "onednn")
        with pytest.raises(RuntimeError, match="its products are wrong here; unset it"):
            product_library.chosen()
    finally:
        onednn.problem.cache_clear()


def test_a_torch_without_the_operator_runs_on_its_own_products(unchosen, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    onednn.problem.cache_clear()
    try:
        assert product_library.chosen() == dict.fromkeys(PRODUCTS, ("eager",) * 3)
    finally:
        onednn.problem.cache_clear()


@needs_onednn
def test_the_faster_library_is_chosen_and_kept(unchosen, monkeypatch):
    times = {"eager": 1.0, "onednn": 0.9, "onednn_copies": 0.7}
    monkeypatch.setattr(product_library, "_times", lambda name, operands: times)
    assert product_library.chosen() == dict.fromkeys(PRODUCTS, ("onednn_copies",) * 3)
    monkeypatch.setattr(product_library, "_times", None)  # nothing is measured again
    monkeypatch.setattr(product_library, "_chosen", None)
    product_library.default.cache_clear()
    assert product_library.chosen() == dict.fromkeys(PRODUCTS, ("onednn_copies",) * 3)
    assert tk.backends(torch.float32)["linear"]["cpu"] == "onednn_copies"
    assert tk.backends(torch.bfloat16)["linear"]["cpu"] == "eager"


@needs_onednn
def test_a_gain_within_the_noise_changes_nothing(unchosen, monkeypatch):
    monkeypatch.setattr(product_library, "_times", lambda name, operands: {"eager": 1.0, "onednn": 0.9})
    assert product_library.chosen() == dict.fromkeys(PRODUCTS, ("eager",) * 3)


def test_what_is_measured_leaves_threads_and_generators_alone(unchosen):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    product_library.measure(((8, 8),) * 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@needs_onednn
def test_a_former_choice_can_be_taken_again(library):
    former = {"linear": ["onednn"] * 3, "linear_backward_x": ["another"] * 3}
    assert product_library.choose(former) == ["linear_backward_x"]
    assert product_library.chosen()["linear"] == ("onednn",) * 3
    assert product_library.chosen()["linear_backward_x"] == (library,) * 3
    assert product_library.choose({}) == []
    assert product_library.chosen() == dict.fromkeys(PRODUCTS, (library,) * 3)


def test_a_home_that_cannot_be_written_to_is_no_error(unchosen, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(choices, "keep", refused)
    monkeypatch.setattr(product_library, "measure", lambda: dict.fromkeys(PRODUCTS, ("eager",) * 3))
    assert product_library.chosen() == dict.fromkeys(PRODUCTS, ("eager",) * 3)


def test_the_variable_holds_in_a_process_of_its_own():
    code = "import torch, tamt_kernels as tk; print(tk.backends(torch.float32)['linear_backward_weight']['cpu'])"
    found = fresh.run(code, TAMT_PRODUCTS="eager")
    assert found.stdout.strip() == "eager", found.stderr
