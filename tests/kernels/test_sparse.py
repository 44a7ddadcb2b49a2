"""Products with the kept entries of a weight, against the dense ones of the weight with its zeros."""

import copy

import pytest
import torch
import torch.nn.functional as F

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.ops import pack_sparse

from .scores import generator, same_bits

# Of less than a vector, a block and a panel; of just one; of one more; of several; so wide that tokens come in parts.
SHAPES = [(1, 1), (7, 9), (128, 128), (129, 131), (300, 257), (3, 4200)]
TOKENS = [1, 3, 4, 5, 17, 64, 100]
SPARSITIES = [0.0, 0.3, 0.8, 1.0]
ROUNDING = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
VALUES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["eager", "generic", "avx2", "avx512"])
def kernels(request):
    """The definitions, or the kernels as compiled for one instruction set: where the operators are."""
    if request.param == "eager":
        yield reference
        return
    extension = pytest.importorskip("tamt_kernels._C")
    if tk.backends()["sparse_linear"]["cpu"] != "cpp" or request.param not in extension.instruction_sets():
        pytest.skip(f"the C++ kernels do not run for {request.param}")
    best = extension.instruction_set()
    extension.use_instruction_set(request.param)
    yield torch.ops.tamt_kernels
    extension.use_instruction_set(best)


def matrix(shape, sparsity, seed=0):
    """A weight and a mask with one empty row, where there are more."""
    mask = torch.rand(shape, generator=generator(seed)) >= sparsity
    if shape[0] > 2:
        mask[1] = False
    return torch.randn(shape, generator=generator(seed + 1)), mask


def rows(*shape, seed=2):
    return torch.randn(shape, generator=generator(seed))


def close(found, expected, dtype):
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).norm()
    return error <= ROUNDING[dtype] * expected.double().norm() + 1e-30


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(kernels, shape, sparsity, values):
    weight, mask = matrix(shape, sparsity)
    packed = tk.pack_sparse(weight, mask, values=values)
    dense, bias = (weight * mask).to(values).double(), rows(shape[0])
    for tokens in TOKENS:
        x, grad = rows(tokens, shape[1]).to(values), rows(tokens, shape[0], seed=3).to(values)
        y = kernels.sparse_linear(x, packed.values, *packed.pattern, shape[0], bias)
        assert close(y, F.linear(x.double(), dense, bias.double()), values)
        grad_x = kernels.sparse_linear_backward_x(grad, packed.values, *packed.pattern, shape[1])
        assert close(grad_x, grad.double() @ dense, values)
        grad_values = kernels.sparse_linear_backward_values(grad, x, *packed.pattern, values)
        positions = reference.sparse_positions(*packed.pattern[:3])
        assert close(grad_values, (grad.double().t() @ x.double())[positions], values)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_an_input_of_any_type_gives_its_type(kernels, dtype, values):
    weight, mask = matrix((130, 70), 0.7)
    packed = tk.pack_sparse(weight, mask, values=values)
    for tokens in (2, 20):
        x = rows(tokens, 70).to(dtype)
        y = kernels.sparse_linear(x, packed.values, *packed.pattern, packed.shape[0])
        assert y.dtype == dtype
        assert close(y, x.to(values).double() @ packed.to_dense().double().t(), dtype)


def test_strides_leading_dimensions_and_no_tokens(kernels):
    packed = tk.pack_sparse(*matrix((40, 30), 0.5))
    x = rows(30, 4, 3).permute(2, 1, 0)
    y = kernels.sparse_linear(x, packed.values, *packed.pattern, packed.shape[0])
    assert y.shape == (3, 4, 40)
    assert torch.equal(y, kernels.sparse_linear(x.contiguous(), packed.values, *packed.pattern, packed.shape[0]))
    assert kernels.sparse_linear(x[0, 0], packed.values, *packed.pattern, packed.shape[0]).shape == (40,)
    assert kernels.sparse_linear(x[:0], packed.values, *packed.pattern, packed.shape[0]).shape == (0, 4, 40)
    none = kernels.sparse_linear_backward_values(rows(0, 40), x[0, :0], *packed.pattern, torch.float32)
    assert torch.equal(none, torch.zeros(packed.nnz))


@pytest.mark.parametrize("tokens", [1, 6, 40])
@pytest.mark.parametrize("values", VALUES)
def test_kept_values_that_are_no_numbers_reach_their_rows_alone(kernels, values, tokens):
    weight, mask = matrix((20, 200), 0.6)
    places = mask.nonzero()[[5, 200, 400]]
    for place, number in zip(places, (torch.nan, torch.inf, 0.0), strict=True):
        weight[tuple(place)] = number
    packed = tk.pack_sparse(weight, mask, values=values)
    assert packed.nnz == mask.sum()
    assert same_bits(packed.to_dense(), weight.masked_fill(~mask, 0).to(values))
    y = kernels.sparse_linear(rows(tokens, 200).to(values), packed.values, *packed.pattern, packed.shape[0])
    rowwise = y.isfinite().all(0)
    assert not rowwise[places[:2, 0]].any()
    assert rowwise.sum() == 18


@pytest.mark.parametrize("tokens", [2, 6, 40])
@pytest.mark.parametrize("values", VALUES)
def test_what_is_pruned_is_not_multiplied(values, tokens):
    if tk.backends()["sparse_linear"]["cpu"] != "cpp":
        pytest.skip("the definition multiplies by zeros")
    weight, mask = matrix((50, 200), 0.5)
    mask[::2, 130] = False
    packed = tk.pack_sparse(weight, mask, values=values)
    x = rows(tokens, 200)
    x[:, 130] = torch.inf
    assert torch.equal(tk.sparse_linear(x, packed).isfinite().all(0), ~mask[:, 130])


def test_threads_change_no_bit():
    packed = tk.pack_sparse(*matrix((700, 300), 0.7))
    x, grad = rows(70, 300), rows(70, 700)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(
                [
                    tk.sparse_linear(x, packed),
                    tk.sparse_linear(x[:2], packed),
                    torch.ops.tamt_kernels.sparse_linear_backward_x(grad, packed.values, *packed.pattern, 300),
                    torch.ops.tamt_kernels.sparse_linear_backward_values(grad, x, *packed.pattern, torch.float32),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("values", VALUES)
def test_rows_of_an_embedding(kernels, values):
    weight, mask = matrix((50, 300), 0.7)
    packed = tk.pack_sparse(weight, mask, values=values)
    ids = torch.randint(50, (3, 7), generator=generator())
    found = kernels.sparse_embedding(ids, packed.values, *packed.pattern, 50, 300)
    assert same_bits(found, packed.to_dense()[ids])
    assert kernels.sparse_embedding(ids[:0].int(), packed.values, *packed.pattern, 50, 300).shape == (0, 7, 300)
    for wrong in (50, -1):
        with pytest.raises(IndexError, match="out of|must have ids from 0 to 49"):
            kernels.sparse_embedding(torch.tensor([3, wrong]), packed.values, *packed.pattern, 50, 300)


def test_gradients_of_an_embedding_are_those_of_the_dense_one():
    weight, mask = matrix((20, 30), 0.6)
    packed = tk.pack_sparse(weight, mask)
    ids = torch.tensor([[3, 1, 3], [19, 0, 5]])
    grad = rows(2, 3, 30)
    for padding in (None, 3, -1):
        values = packed.values.clone().requires_grad_()
        part = tk.SparseWeight(packed.shape, values, *packed.pattern)
        tk.sparse_embedding(ids, part, padding).backward(grad)
        dense = (weight * mask).requires_grad_()
        F.embedding(ids, dense, padding).backward(grad)
        positions = reference.sparse_positions(*packed.pattern[:3])
        assert close(values.grad, dense.grad[positions], torch.float32)
        by_definition = reference.sparse_embedding_backward(grad, ids, *packed.pattern, 20, None)
        if padding is None:
            assert close(values.grad, by_definition, torch.float32)


def test_gradients_are_those_of_the_dense_product():
    weight, mask = matrix((60, 70), 0.7)
    packed = tk.pack_sparse(weight, mask)
    x, bias, values = rows(3, 5, 70).requires_grad_(), rows(60).requires_grad_(), packed.values.clone().requires_grad_()
    y = tk.sparse_linear(x, tk.SparseWeight(packed.shape, values, *packed.pattern), bias)
    dense = (weight * mask).requires_grad_()
    expected = F.linear(x, dense, bias)
    grad = rows(3, 5, 60)
    found = torch.autograd.grad(y, (x, values, bias), grad)
    wanted = torch.autograd.grad(expected, (x, dense, bias), grad)
    assert close(found[0], wanted[0], torch.float32)
    assert close(found[1], wanted[1][reference.sparse_positions(*packed.pattern[:3])], torch.float32)
    assert close(found[2], wanted[2], torch.float32)


def test_a_gradient_has_a_gradient():
    packed = tk.pack_sparse(*matrix((5, 6), 0.5))
    x, values, grad = (each.requires_grad_() for each in (rows(3, 6), packed.values.clone(), rows(3, 5)))

    def first_gradients(x, values, grad):
        y = tk.sparse_linear(x, tk.SparseWeight(packed.shape, values, *packed.pattern))
        return torch.autograd.grad(y, (x, values), grad, create_graph=True)

    def dense_gradients(x, values, grad):
        weight = reference.sparse_dense(values, *packed.pattern[:3], 5, 6)
        return torch.autograd.grad(F.linear(x, weight), (x, values), grad, create_graph=True)

    for gradients in zip(
        *(
            torch.autograd.grad(sum(each.sin().sum() for each in way(x, values, grad)), (x, values, grad))
            for way in (first_gradients, dense_gradients)
        ),
        strict=True,
    ):
        assert close(*gradients, torch.float32)


def test_what_a_packed_weight_tells():
    weight, mask = matrix((300, 257), 0.8)
    packed = tk.pack_sparse(weight.half(), mask)
    assert packed.dtype == torch.float32
    assert packed.shape == (300, 257)
    assert packed.nnz == mask.sum()
    assert packed.sparsity == pytest.approx(1 - mask.float().mean().item())
    assert packed.nbytes == 5 * packed.nnz + 3 * 3 * (2 * 128 + 8) + 8
    kept, values = packed.kept()
    assert torch.equal(kept, mask)
    assert torch.equal(values, weight.half().float()[mask])
    again = tk.SparseWeight.from_kept(kept, values)
    assert all(map(torch.equal, again.pattern, packed.pattern))
    assert same_bits(copy.deepcopy(packed).to_dense(), packed.to_dense())
    assert tk.pack_sparse(weight * mask).nnz == (weight * mask != 0).sum()
    assert repr(packed).startswith("SparseWeight((300, 257), float32, sparsity=0.8")
    with pytest.raises(AttributeError):
        packed.values = values


def test_a_matrix_packed_in_bands_is_that_packed_at_once(monkeypatch):
    weight, mask = matrix((300, 257), 0.8)
    monkeypatch.setattr(pack_sparse, "BAND", 1)
    packed = tk.pack_sparse(weight, mask)
    columns, order, counts, starts = reference.sparse_pattern(mask)
    assert all(map(torch.equal, packed.pattern, (columns, order, counts, starts)))
    assert torch.equal(packed.values, weight[reference.sparse_positions(columns, order, counts)])
    again = tk.SparseWeight.from_kept(mask, weight[mask])
    assert all(map(torch.equal, (again.values, *again.pattern), (packed.values, *packed.pattern)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: tk.pack_sparse(w.double()), TypeError, "weight has dtype float64"),
        (lambda w: tk.pack_sparse(w[0]), ValueError, r"weight has shape \(6,\) but must have 2 dimensions"),
        (lambda w: tk.pack_sparse(w, w > 0, values=torch.float16), TypeError, "values is torch.float16 but must be"),
        (lambda w: tk.pack_sparse(w, w), TypeError, "mask has dtype float32 but must have bool"),
        (lambda w: tk.pack_sparse(w, w[:2] > 0), ValueError, r"mask has shape \(2, 6\) but must have \(5, 6\)"),
        (lambda w: tk.pack_sparse(w[:0]), ValueError, "must have rows and columns"),
        (lambda w: tk.SparseWeight.from_kept(w > 9, w[0]), ValueError, r"values has shape \(6,\) but must have \(0,\)"),
        (lambda w: tk.sparse_linear(w, w), TypeError, "weight is a Tensor but must be a SparseWeight"),
        (
            lambda w: tk.sparse_linear(w.t(), tk.pack_sparse(w)),
            ValueError,
            r"x has shape \(6, 5\) but must have 6 entr",
        ),
        (lambda w: tk.sparse_linear(w, tk.pack_sparse(w), w[0]), ValueError, "bias has shape"),
        (lambda w: tk.sparse_embedding(w, tk.pack_sparse(w)), TypeError, "ids has dtype float32"),
        (lambda w: tk.sparse_embedding(w.long(), tk.pack_sparse(w), 5), ValueError, "padding_idx is 5 but must be"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(rows(5, 6))
