"""Sparse layers in place of dense ones."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tamt_kernels as tk
from tamt_kernels.backend import choices
from tamt_kernels.sparse import set_sparse

from .scores import generator, same_bits


def mask_of(weight, sparsity=0.6):
    return torch.rand(weight.shape, generator=generator()) >= sparsity


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(30, 20, bias)


class Model(nn.Module):
    """An embedding tied to the output, as in a language model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 30, padding_idx=0)
        self.body = nn.Sequential(nn.Linear(30, 40), nn.GELU(), nn.Linear(40, 30))
        self.decoder = nn.Linear(30, 50)
        self.decoder.weight = self.words.weight
        self.norm = nn.LayerNorm(30)

    def forward(self, ids):
        return self.decoder(self.norm(self.body(self.words(ids))))


IDS = torch.tensor([[1, 2, 0], [49, 3, 3]])


def masks(model):
    return {name: mask_of(each) for name, each in model.named_parameters() if each.dim() == 2}


def pruned(model, of):
    """A copy with zeros, dense."""
    model = copy.deepcopy(model)
    for name, mask in of.items():
        model.get_parameter(name).data.masked_fill_(~mask, 0)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_the_dense_one_with_zeros(bias):
    dense = linear(bias)
    mask = mask_of(dense.weight)
    layer = tk.SparseLinear.from_linear(dense, mask)
    x = torch.randn(4, 5, 30)
    torch.testing.assert_close(layer(x), F.linear(x, dense.weight * mask, dense.bias))
    assert layer.bias is dense.bias
    assert f"in_features=30, out_features=20, bias={bias}, float32, sparsity=0.6" in repr(layer)


def test_training_moves_kept_entries_alone():
    dense = linear()
    mask = mask_of(dense.weight)
    layer = tk.SparseLinear.from_linear(copy.deepcopy(dense), mask)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (dense, layer)]
    dense.weight.data.masked_fill_(~mask, 0)
    for step in range(5):
        x = torch.randn(8, 30, generator=generator(step))
        losses = [each(x).square().mean() for each in (dense, layer)]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
        dense.weight.grad.masked_fill_(~mask, 0)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(*losses)
    torch.testing.assert_close(layer.weight.to_dense(), dense.weight.data)


def test_a_state_is_canonical_and_loads_anywhere():
    layer = tk.SparseLinear.from_linear(linear(), mask_of(linear().weight))
    state = layer.state_dict()
    assert list(state) == ["values", "bias", "mask"]
    assert torch.equal(state["mask"], tk.pack_mask(layer.weight.mask()))
    assert same_bits(state["values"], layer.weight.to_dense()[layer.weight.mask()])
    empty = tk.SparseLinear(30, 20)
    assert empty.weight.nnz == 0
    assert empty.load_state_dict(state) == ([], [])
    x = torch.randn(7, 30)
    assert torch.equal(empty(x), layer(x))
    state["values"].data.zero_()
    assert empty.values.any()  # copied


def test_tied_layers_stay_tied_when_another_mask_is_loaded():
    layers = []
    for sparsity in (0.6, 0.8):
        weight = tk.pack_sparse(torch.randn(50, 30), mask_of(torch.empty(50, 30), sparsity))
        words = tk.SparseEmbedding.from_weight(weight)
        layers.append(nn.ModuleDict({"words": words, "decoder": tk.SparseLinear.from_weight(words.weight)}))
    tied, other = layers
    before = tied["words"].values
    assert tied.load_state_dict(other.state_dict()) == ([], [])
    assert tied["words"].values is tied["decoder"].values is before
    x = torch.randn(3, 30)
    assert torch.equal(tied["words"](IDS), other["words"](IDS))
    assert torch.equal(tied["decoder"](x), other["decoder"](x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mask"), r"Missing key.*mask"),
        (lambda state: state.pop("values"), r"Missing key.*values"),
        (lambda state: state.update(mask=state["mask"][1:]), r"packed has shape \(74,\)"),
        (lambda state: state.update(values=state["values"][1:]), "values has shape"),
    ],
)
def test_a_wrong_state_is_refused(change, message):
    layer = tk.SparseLinear.from_linear(linear(), mask_of(linear().weight))
    state = dict(layer.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)


def test_copies_and_pickles():
    layer = tk.SparseLinear.from_linear(linear(), mask_of(linear().weight))
    x = torch.randn(3, 30)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), layer(x))
        assert other.values.data_ptr() != layer.values.data_ptr()


def test_types():
    layer = tk.SparseLinear.from_linear(linear(), mask_of(linear().weight))
    dense = layer.weight.to_dense()
    assert same_bits(layer.to(torch.bfloat16).weight.to_dense(), dense.bfloat16())
    assert layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(2, 30).bfloat16()).dtype == torch.bfloat16
    for refused in (torch.float16, torch.float64):
        with pytest.raises(TypeError, match="SparseLinear: float.. values are not supported"):
            layer.to(refused)
    assert layer.values.dtype == torch.bfloat16
    assert layer.columns.dtype == torch.uint8


def test_compiled_code_has_no_break():
    layer = tk.SparseLinear.from_linear(linear(), mask_of(linear().weight))
    x = torch.randn(3, 30)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.values.grad is not None


@pytest.mark.parametrize("values", [None, torch.bfloat16])
def test_a_model_becomes_sparse_and_ties_stay(values):
    model = Model()
    of = masks(model)
    expected = pruned(model, of)(IDS)
    tk.sparsify(model, of, values=values, at_least=0.5)
    assert type(model.words) is tk.SparseEmbedding
    assert [type(each) for each in model.body] == [tk.SparseLinear, nn.GELU, tk.SparseLinear]
    assert model.decoder.values is model.words.values
    assert model.words.padding_idx == 0
    tolerance = {} if values is None else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(model(IDS), expected, check_dtype=False, **tolerance)
    other = Model()
    tk.sparsify(other, {name: ~mask for name, mask in of.items()}, values=values, at_least=0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS), model(IDS))


def test_a_tie_trains_as_one():
    model = Model()
    of = masks(model)
    dense = pruned(model, of)
    tk.sparsify(model, of, at_least=0)
    for each in (model, dense):
        each(IDS).square().mean().backward()
    sums = tk.SparseWeight(model.words.weight.shape, model.words.values.grad, *model.words.weight.pattern).to_dense()
    torch.testing.assert_close(sums, dense.words.weight.grad * of["words.weight"])


def test_a_packed_weight_takes_the_place_of_a_model_s_own():
    model, of = Model(), masks(Model())
    expected = pruned(model, of)(IDS)
    for name, mask in of.items():
        weight = tk.pack_sparse(model.get_parameter(name), mask)
        model.get_parameter(name).data.fill_(float("nan"))  # is not read
        set_sparse(model, name, weight)
    assert model.decoder.values is model.words.values
    torch.testing.assert_close(model(IDS), expected)
    with pytest.raises(KeyError, match=r"name is 'norm.weight', but no nn.Linear"):
        set_sparse(model, "norm.weight", weight)
    with pytest.raises(ValueError, match=r"weight has shape .* but must have \(50, 30\), as words.weight has"):
        set_sparse(Model(), "words.weight", weight)


def test_a_layer_that_is_used_twice_stays_one():
    layer = nn.Linear(64, 64)
    model, mask = nn.Sequential(layer, nn.ReLU(), layer), mask_of(layer.weight)
    dense = copy.deepcopy(model)
    dense[0].weight.data *= mask
    tk.sparsify(model, {"0.weight": mask}, at_least=0)
    assert type(model[0]) is tk.SparseLinear
    assert model[0] is model[2]
    x = torch.randn(7, 64)
    torch.testing.assert_close(model(x), dense(x))


def test_zeros_are_the_mask_by_default():
    model = Model()
    of = {name: mask for name, mask in masks(model).items() if "body" in name}
    dense = pruned(model, of)
    sparse = copy.deepcopy(dense)
    tk.sparsify(sparse)
    assert type(sparse.words) is nn.Embedding  # has no zeros but its padding
    assert type(sparse.body[0]) is tk.SparseLinear
    torch.testing.assert_close(sparse(IDS), dense(IDS))


def test_below_the_break_even_a_layer_stays_dense_and_that_is_said():
    model = Model()
    mask = mask_of(model.body[0].weight, 0.2)
    with pytest.warns(UserWarning, match=r"1 of 1 weights stay dense.*\(body.0.weight 2.%\)"):
        tk.sparsify(model, {"body.0.weight": mask})
    assert type(model.body[0]) is nn.Linear
    assert torch.equal(model.body[0].weight != 0, mask)


def test_the_measured_break_even_decides_and_what_stays_dense_is_not_packed(monkeypatch):
    from tamt_kernels import sparse

    packed = []
    pack_sparse = sparse.pack_sparse
    monkeypatch.setattr(sparse, "pack_sparse", lambda *given, **named: packed.append(1) or pack_sparse(*given, **named))
    for measured, kind in ((0.7, nn.Linear), (0.2, tk.SparseLinear)):
        found = choices.Choices({}, {}, {"float32": measured})
        monkeypatch.setattr(choices, "of", lambda device, found=found: found)
        model = Model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tk.sparsify(model, {"body.0.weight": mask_of(model.body[0].weight, 0.5)})
        assert type(model.body[0]) is kind
    assert len(packed) == 1


def test_a_model_that_cannot_be_sparse_stays_as_it_was():
    model = Model()
    of = masks(model)
    with pytest.raises(KeyError, match=r"masks has 'body.1.weight'"):
        tk.sparsify(model, {**of, "body.1.weight": of["body.0.weight"]})
    with pytest.raises(KeyError, match=r"of the model has it; put 'body.' before the names, as the model has it"):
        tk.sparsify(model, {"0.weight": of["body.0.weight"]})
    with pytest.raises(ValueError, match="mask has shape"):
        tk.sparsify(model, {**of, "body.0.weight": of["body.2.weight"]})
    model.attention = nn.MultiheadAttention(30, 2)
    model.body[2] = nn.Linear(30, 30)
    model.body[2].weight = model.attention.out_proj.weight
    with pytest.raises(ValueError, match=r"attention.out_proj shares the weight of an nn.Linear"):
        tk.sparsify(model, of)
    assert not any(isinstance(each, tk.SparseLinear | tk.SparseEmbedding) for each in model.modules())


def test_only_dense_layers_can_be_sparse():
    with pytest.raises(TypeError, match="linear is a Embedding but must be an nn.Linear"):
        tk.SparseLinear.from_linear(nn.Embedding(2, 3))
    with pytest.raises(ValueError, match="embedding has max_norm set"):
        tk.SparseEmbedding.from_embedding(nn.Embedding(2, 3, max_norm=1.0))
    with pytest.raises(TypeError, match="weight is a Parameter but must be a SparseWeight"):
        tk.SparseLinear.from_weight(nn.Linear(2, 3).weight)
