"""Attention is that of torch but for the weights that dropout draws."""

import itertools

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function

from tamt.models.attention import ATTENTION, attention, attention_mask, use_fast_attention
from tamt.models.dropout import drop


def model(**config):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=50, **small, **config))


@pytest.fixture
def padded():
    ids = torch.arange(24).view(2, 12) + 3
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": attention_mask}


@pytest.mark.parametrize("decoder", [False, True])
def test_attention_is_that_of_torch(padded, decoder):
    """With a dropout that zeroes one of 2^16 entries, and so none of these 1,152, in the seed's draws."""
    usual, fast = (
        model(attention_probs_dropout_prob=1e-9, hidden_dropout_prob=0.0, is_decoder=decoder) for _ in range(2)
    )
    use_fast_attention(fast)
    found = []
    for each, rows in itertools.product(
        (usual.train(), fast.train()), (slice(0, 1), slice(0, 2))
    ):  # the first is whole
        torch.manual_seed(1)
        output = each(**{name: tensor[rows] for name, tensor in padded.items()}).last_hidden_state
        real = output * padded["attention_mask"][rows].unsqueeze(-1)
        real.square().sum().backward()
        found.append((real, [p.grad.clone() for p in each.parameters() if p.grad is not None]))
        each.zero_grad()
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_dropout_and_its_gradients_are_those_of_their_parts(masked):
    query, key, value = (
        each.transpose(1, 2).requires_grad_()  # as a model has them, heads after tokens in memory
        for each in torch.randn(3, 2, 7, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    mask = (torch.arange(7) < torch.tensor([[7], [4]])).view(2, 1, 1, 7).expand(2, 1, 7, 7) if masked else None
    layer = nn.Module()
    layer.is_causal = False
    torch.manual_seed(0)
    output, _ = attention(layer, query, key, value, mask, dropout=0.3, scaling=0.2)
    torch.manual_seed(0)
    products = 0.2 * query @ key.transpose(-1, -2)
    weights = (products if mask is None else products.masked_fill(~mask, -torch.inf)).softmax(-1)
    expected = (drop(weights, 0.3) @ value).transpose(1, 2)
    torch.testing.assert_close(output, expected)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    found, wanted = (torch.autograd.grad(each, (query, key, value), grad) for each in (output, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision_is_that_of_torch_within_rounding(masked, dtype):
    """The outputs are the same; the gradients are not, as the weights of the backward pass are rounded here."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 2, 21, 4, 8, generator=generator).to(dtype)
    mask = (torch.arange(21) < torch.tensor([[21], [13]])).view(2, 1, 1, 21).expand(2, 1, 21, 21) if masked else None
    grad = torch.randn(2, 21, 4, 8, generator=generator).to(dtype)
    layer = nn.Module()
    layer.is_causal = False
    found = {}
    for name, function, of in (
        ("exact", sdpa_attention_forward, states.double()),
        ("torch", sdpa_attention_forward, states),
        ("ours", attention, states),
    ):
        inputs = [each.transpose(1, 2).requires_grad_() for each in of]
        output = function(layer, *inputs, mask, scaling=0.4)[0]
        found[name] = [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]
    assert torch.equal(found["ours"][0], found["torch"][0])
    for exact, theirs, ours in zip(*found.values(), strict=True):
        assert (ours - exact).norm() <= 2.5 * (theirs - exact).norm()
        assert (ours - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()
    assert not torch.equal(found["ours"][1], found["torch"][1])


@pytest.mark.parametrize(
    ("mask", "types", "heads_of_keys"),
    [
        (torch.zeros(2, 1, 1, 7).index_fill(3, torch.tensor([5, 6]), -1e9), [torch.float32] * 3, 4),  # LayoutLM's
        (None, [torch.float32, torch.float32, torch.bfloat16], 4),  # rotary queries and keys under autocast
        (None, [torch.float32] * 3, 2),
    ],
)
def test_attention_of_a_kind_that_is_not_ours_is_that_of_torch(mask, types, heads_of_keys):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 7, 8, generator=generator).to(dtype)
        for heads, dtype in zip((4, heads_of_keys, heads_of_keys), types, strict=True)
    )
    layer = nn.Module()
    layer.is_causal, layer.num_key_value_groups = False, 4 // heads_of_keys
    found = []
    for each in (attention, sdpa_attention_forward):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(each(layer, query, key, value, mask, dropout=0.3)[0])
    assert torch.equal(*found)


def test_attention_drops_weights_in_training_alone(padded):
    fast = model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    use_fast_attention(fast)
    first, second = (fast.train()(**padded).last_hidden_state for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)
    usual = model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).eval()
    torch.testing.assert_close(fast.eval()(**padded).last_hidden_state, usual(**padded).last_hidden_state)


def test_a_model_that_evaluates_goes_on_evaluating(padded):
    usual = model().eval()
    fast = model().eval()
    use_fast_attention(fast)
    torch.testing.assert_close(fast(**padded).last_hidden_state, usual(**padded).last_hidden_state)


def test_padding_gets_no_attention():
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < 3).expand(1, 1, 5, 5)
    layer = nn.Module()
    layer.is_causal = False
    torch.manual_seed(0)
    output, _ = attention(layer, query, key, value, mask, dropout=0.25)
    torch.manual_seed(0)
    value[:, :, 3:] += 100
    assert torch.equal(attention(nn.Module(), query, key, value, mask, dropout=0.25)[0], output)


def test_a_mask_is_made_of_one_alone_and_without_a_look_at_its_entries_on_a_device(monkeypatch):
    sizes = {
        "batch_size": 2,
        "q_length": 12,
        "kv_length": 12,
        "mask_function": bidirectional_mask_function,
        "allow_is_causal_skip": False,
    }
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)  # as in a graph's recording
    assert attention_mask(**sizes, allow_is_bidirectional_skip=True) is None
    monkeypatch.undo()
    on_device = torch.ones(2, 12, dtype=torch.bool, device="meta")  # of which no entry can be looked at
    made = attention_mask(**sizes, attention_mask=on_device, allow_is_bidirectional_skip=True, device="meta")
    assert made.shape == (2, 1, 12, 12)


def test_a_saved_model_knows_nothing_of_it(tmp_path):
    fast = model()
    use_fast_attention(fast)
    fast.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert BertModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
