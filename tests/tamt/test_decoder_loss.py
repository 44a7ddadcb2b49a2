"""The loss of logits that are never all there is that of logits that are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tamt.models import decoder_rows as module
from tamt.models.decoder_loss import decoder_loss
from tamt.models.language_model import MaskedLanguageModel

IGNORED = -100


def decoder(bias=True):
    torch.manual_seed(0)
    made = nn.Linear(16, 60, bias=bias)
    made.weight.requires_grad_(False)
    return made


def rows(count):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, 16, generator=generator)
    labels = torch.randint(60, (count,), generator=generator)
    labels[::3] = IGNORED
    return hidden.requires_grad_(), labels


def gradients(loss, hidden, bias):
    wanted = [hidden] if bias is None else [hidden, bias]
    return torch.autograd.grad(3 * loss, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 30])
def test_it_is_the_cross_entropy_of_the_logits(count, bias, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 8)
    layer, (hidden, labels) = decoder(bias), rows(count)
    found = decoder_loss(hidden, layer, labels, IGNORED)
    expected = F.cross_entropy(layer(hidden), labels, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, hidden, layer.bias), gradients(expected, hidden, layer.bias))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_under_autocast(dtype, tolerance):
    layer, (hidden, labels) = decoder(), rows(30)
    exact = F.cross_entropy(layer(hidden), labels, reduction="sum", ignore_index=IGNORED)
    with torch.autocast("cpu", dtype):
        found = decoder_loss(hidden, layer, labels, IGNORED)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=tolerance)
    for mine, wanted in zip(gradients(found, hidden, layer.bias), gradients(exact, hidden, layer.bias), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - wanted).norm() <= tolerance * wanted.norm()


def test_small_probabilities_are_not_lost_in_float16():
    """Of a label that is all but certain, the gradient is the sum of 30,000 probabilities of 1e-8 each."""
    layer = nn.Linear(2, 30_000)
    with torch.no_grad():
        layer.weight.requires_grad_(False).fill_(1.0)[0] = 0.0
        layer.bias.zero_()[0] = math.log(1e8)
    hidden = torch.zeros(1, 2, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss = decoder_loss(hidden, layer, torch.tensor([0]), IGNORED)
    (grad,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(grad, torch.full((1, 2), 3e-4), rtol=1e-2, atol=0)


def test_nothing_is_lost_where_nothing_is_masked():
    layer, (hidden, labels) = decoder(), rows(6)
    for some in (hidden[:0], hidden):
        loss = decoder_loss(some, layer, torch.full((len(some),), IGNORED), IGNORED)
        assert loss == 0
        assert all((grad == 0).all() for grad in gradients(loss, some, layer.bias))
    with torch.no_grad():
        assert not decoder_loss(hidden, layer, labels, IGNORED).requires_grad


def test_a_bias_trains_under_hidden_states_that_do_not():
    layer, (hidden, labels) = decoder(), rows(6)
    loss = decoder_loss(hidden.detach(), layer, labels, IGNORED)
    expected = F.cross_entropy(layer(hidden.detach()), labels, reduction="sum", ignore_index=IGNORED)
    found, wanted = (torch.autograd.grad(each, layer.bias) for each in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_a_matrix_that_trains_is_refused():
    layer, (hidden, labels) = decoder(), rows(3)
    layer.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="must be frozen"):
        decoder_loss(hidden, layer, labels, IGNORED)


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertForMaskedLM(BertConfig(**SIZES)),
        lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
        lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24)),
        lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=12)),
    ],
)
def test_a_head_is_its_transform_and_its_decoder(model):
    torch.manual_seed(0)
    model = model().eval()
    ids = torch.arange(10).view(2, 5) + 3
    head = MaskedLanguageModel(model, fresh_head=False)
    with torch.no_grad():
        for parameter in head.head_parameters().values():
            parameter.add_(torch.randn_like(parameter))
        hidden = head.encoder(ids).last_hidden_state
        torch.testing.assert_close(head.decoder(head.transform(hidden)), model(ids).logits)
