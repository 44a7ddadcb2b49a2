"""MaskedLinear, MaskedEmbedding and update_masks."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import tamt_kernels as tk

from .scores import gaussian


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        tk.MaskedEmbedding.from_embedding(nn.Embedding(11, 8, padding_idx=0), 30),
        tk.MaskedLinear.from_linear(nn.Linear(8, 16), 50),
        nn.GELU(),
        tk.MaskedLinear.from_linear(nn.Linear(16, 4, bias=False), 10, ranking="abs"),
    )


IDS = torch.tensor([[1, 2, 0], [10, 2, 2]])


def masks(model):
    return [module.mask for module in model if hasattr(module, "mask")]


def train(model, steps=3, lr=0.03):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS).square().sum().backward()
        optimizer.step()
        tk.update_masks(model)
        for module in model:
            if hasattr(module, "mask"):
                assert int(module.mask.sum()) == module.keep


def test_wrapping_takes_the_parameters_and_freezes_them():
    linear, embedding = nn.Linear(8, 16), nn.Embedding(11, 8)
    masked = tk.MaskedLinear.from_linear(linear, 50)
    assert masked.weight is linear.weight
    assert masked.bias is linear.bias
    assert [name for name, p in masked.named_parameters() if p.requires_grad] == ["score"]
    assert tk.MaskedEmbedding.from_embedding(embedding, 5).weight is embedding.weight


def test_the_first_mask_keeps_the_largest_weights():
    linear = nn.Linear(8, 16)
    masked = tk.MaskedLinear.from_linear(linear, 50)
    smallest_kept = linear.weight[masked.mask].abs().min()
    assert int(masked.mask.sum()) == 50
    assert masked.sparsity == pytest.approx(1 - 50 / 128)
    assert smallest_kept >= linear.weight[~masked.mask].abs().max()
    assert torch.equal(masked.score, torch.where(masked.mask, 0.02, 0.0))


@pytest.mark.parametrize("keep", [0, 1, 64, 127, 128])
@pytest.mark.parametrize("ranking", ["signed", "abs"])
def test_a_mask_of_ones_own(keep, ranking):
    mask = torch.zeros(128, dtype=torch.bool)
    mask[torch.randperm(128, generator=torch.Generator().manual_seed(0))[:keep]] = True
    masked = tk.MaskedLinear.from_linear(nn.Linear(8, 16), keep, mask.reshape(16, 8), ranking)
    assert torch.equal(masked.mask, mask.reshape(16, 8))
    assert torch.equal(masked.masked_weight(), masked.weight * masked.mask)
    if keep:
        with pytest.raises(ValueError, match=f"mask has {keep} ones but must have {keep - 1}"):
            tk.MaskedLinear.from_linear(nn.Linear(8, 16), keep - 1, mask.reshape(16, 8))


def test_masks_are_exact_after_every_step(model):
    before = masks(model)
    train(model)
    assert any(not torch.equal(a, b) for a, b in zip(before, masks(model), strict=True))


def test_update_masks_writes_in_place_and_takes_a_list(model):
    storage = model[1].value.data_ptr()
    model[1].score.data = gaussian(128).reshape(16, 8)
    tk.update_masks([model[1]])
    assert model[1].value.data_ptr() == storage
    assert int(model[1].mask.sum()) == 50
    model[3].score.data = -gaussian(64).reshape(4, 16)
    tk.update_masks(model)
    assert model[3].score[model[3].mask].abs().min() >= model[3].score[~model[3].mask].abs().max()


def test_update_masks_takes_modules_that_come_one_by_one(model):
    model[1].score.data = gaussian(128).reshape(16, 8)
    tk.update_masks(module for module in model)
    assert int(model[1].mask.sum()) == 50


def test_the_padding_row_of_an_embedding(model):
    y = model[0](IDS)
    assert torch.equal(y[0, 2], model[0].masked_weight()[0])
    y.sum().backward()
    assert torch.count_nonzero(model[0].score.grad[0]) == 0
    assert torch.count_nonzero(model[0].score.grad[2]) == 8


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = nn.Sequential(
        tk.MaskedEmbedding.from_embedding(nn.Embedding(11, 8, padding_idx=0), 30),
        tk.MaskedLinear.from_linear(nn.Linear(8, 16), 50),
        nn.GELU(),
        tk.MaskedLinear.from_linear(nn.Linear(16, 4, bias=False), 10, ranking="abs"),
    )
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


@pytest.mark.parametrize("transport", [copied, pickled, saved])
def test_copies_are_equal_and_apart(model, transport):
    train(model)
    other = transport(model)
    assert torch.equal(model(IDS), other(IDS))
    expected = masks(model)
    train(other, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(expected, masks(model), strict=True))
    assert not torch.equal(model(IDS), other(IDS))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to("cpu", torch.float16)])
def test_half_weights_keep_the_score_and_so_the_mask(model, cast):
    train(model)
    expected = masks(model)
    scores = [module.score.clone() for module in (model[0], model[1], model[3])]
    cast(model)
    assert model[1].weight.dtype in (torch.float16, torch.bfloat16)
    assert model(IDS).dtype == model[1].weight.dtype
    assert all(torch.equal(a, b) for a, b in zip(expected, masks(model), strict=True))
    for module, score in zip((model[0], model[1], model[3]), scores, strict=True):
        assert torch.equal(module.score, score)
        assert module.value.dtype == torch.float32
    train(model)


def test_half_weights_keep_the_gradient_of_the_score(model):
    model(IDS).square().sum().backward()
    grads = [module.score.grad.clone() for module in (model[0], model[1], model[3])]
    model.half()
    for module, grad in zip((model[0], model[1], model[3]), grads, strict=True):
        assert torch.equal(module.score.grad, grad)


def test_moving_to_another_device(model):
    model.to("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model[1].value.is_meta
    assert model(IDS.to("meta")).shape == (2, 3, 4)
    assert model[1].score.dtype == torch.float32


def test_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        y = model(IDS)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert model[1].score.grad.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break(model, autocast):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = []
    for each in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = each(IDS)
        y.float().square().sum().backward()
        grads.append([y, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_backward_pass_compiles_too(model):
    model(IDS).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    loss = model(IDS).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss.backward()
    for found, grad in zip((p.grad for p in model.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(found, grad)


def test_update_masks_refuses_nan(model):
    model[1].score.data[3, 3] = torch.nan
    with pytest.raises(ValueError, match="has NaN"):
        tk.update_masks(model)


def test_layers_that_cannot_be_wrapped():
    with pytest.raises(TypeError, match=r"must be an nn\.Linear"):
        tk.MaskedLinear.from_linear(nn.Conv1d(1, 1, 1), 1)
    with pytest.raises(TypeError, match=r"must be an nn\.Embedding"):
        tk.MaskedEmbedding.from_embedding(nn.Linear(1, 1), 1)
    with pytest.raises(ValueError, match="max_norm"):
        tk.MaskedEmbedding.from_embedding(nn.Embedding(3, 3, max_norm=1.0), 1)
    with pytest.raises(ValueError, match="from 0 to 9"):
        tk.MaskedEmbedding.from_embedding(nn.Embedding(3, 3), 10)
    with pytest.raises(ValueError, match="ranking is 'best'"):
        tk.MaskedLinear.from_linear(nn.Linear(2, 2), 1, ranking="best")


def test_a_state_of_another_keep_is_refused() -> None:
    layers = [tk.MaskedLinear.from_linear(nn.Linear(8, 8), keep) for keep in (32, 10)]
    state = layers[0].state_dict()
    with pytest.raises((RuntimeError, ValueError), match="keep is 32 but must be 10"):
        layers[1].load_state_dict(state)
    same = tk.MaskedLinear.from_linear(nn.Linear(8, 8), 32)
    same.load_state_dict(state)
    assert torch.equal(same.mask, layers[0].mask)
    del state["_extra_state"]  # as it was saved before there was one
    same.load_state_dict(state)


@pytest.mark.parametrize("made", ["at each call", "by the optimizer", "overwritten"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_the_output_of_a_layer_can_be_changed_in_place(dims: int, bias: bool, made: str) -> None:
    """As that of `nn.Linear`: DeBERTa adds to its queries in place."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 6, bias=bias)
    layer = tk.MaskedLinear.from_linear(linear, keep=48)
    optimizer = None if made == "at each call" else tk.MaskAdamW(layer, overwrite=made == "overwritten")
    found, expected = [torch.randn(*(2, 3, 5)[: dims - 1], 8).requires_grad_() for _ in range(2)]
    expected.data.copy_(found.data)
    outputs = [torch.relu_(layer(found).unflatten(-1, (2, 3))), torch.relu_(linear(expected).unflatten(-1, (2, 3)))]
    torch.testing.assert_close(outputs[0], outputs[1])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)
    if optimizer:
        assert optimizer.step().isfinite()


def test_the_output_of_an_embedding_can_be_changed_in_place() -> None:
    for overwrite in (True, False):
        layer = tk.MaskedEmbedding.from_embedding(nn.Embedding(8, 6), keep=48)
        optimizer = tk.MaskAdamW(layer, overwrite=overwrite)
        layer(torch.tensor([[1, 2, 1]])).transpose(1, 2).mul_(2).sum().backward()
        assert optimizer.step().isfinite()
