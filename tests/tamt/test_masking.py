"""Which matrices are pruned, and what a mask does to a model."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

import tamt_kernels as tk
from tamt.masks.masking import (
    apply_masks,
    check_fits,
    keep_of,
    magnitude_masks,
    masks_of,
    prunable_modules,
    prunable_weights,
    random_masks,
    sparsity_of,
    wrap,
)
from tamt.models.language_model import load_masked_language_model
from tamt.runtime.errors import UserError

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def test_bert_base_has_73_prunable_matrices_of_108_4_million_entries() -> None:
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
    weights = prunable_weights(model)
    assert len(weights) == 73
    assert sum(w.numel() for w in weights.values()) == 12 * (4 * 768**2 + 2 * 768 * 3072) + 30522 * 768 == 108_375_552


def test_names_are_those_of_the_model_without_its_head(tiny_bert, tiny_roberta) -> None:
    for folder in (tiny_bert, tiny_roberta):
        names = set(prunable_weights(load_masked_language_model(str(folder)).model))
        assert "embeddings.word_embeddings.weight" in names
        assert "encoder.layer.1.attention.output.dense.weight" in names
        assert len(names) == 1 + 2 * 6


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (
            DistilBertForMaskedLM(DistilBertConfig(vocab_size=50, dim=16, hidden_dim=24, n_layers=2, n_heads=2)),
            1 + 2 * 6,
        ),
        (ElectraForMaskedLM(ElectraConfig(embedding_size=8, **SMALL)), 1 + 3 * 6),
    ],
)
def test_other_encoders_of_the_family(model, count) -> None:
    assert len(prunable_modules(model)) == count


def test_pooler_only_on_request() -> None:
    model = BertModel(BertConfig(**SMALL))
    assert not any("pooler" in name for name in prunable_weights(model))
    assert "pooler.dense.weight" in prunable_weights(model, pooler=True)


def test_a_model_without_such_matrices_is_refused() -> None:
    with pytest.raises(UserError, match="GPT2LMHeadModel.*no prunable matrix"):
        prunable_modules(GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=20)))


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5, 0.7, 0.999])
def test_every_mask_keeps_exactly_its_share(sparsity: float) -> None:
    weights = {"a": torch.randn(37, 11), "b": torch.ones(5, 5), "c": torch.zeros(64, 3)}
    for masks in (magnitude_masks(weights, sparsity), random_masks(weights, sparsity, seed=3)):
        for name, mask in masks.items():
            assert int(mask.sum()) == keep_of(weights[name].numel(), sparsity)


def test_a_share_is_the_decimal_that_was_written() -> None:
    assert keep_of(100, 0.29) == 71
    assert keep_of(10, 0.7) == 3
    assert keep_of(589_824, 0.7) == 589_824 - 412_876


def test_magnitude_masks_keep_the_largest_and_break_ties_by_lower_index() -> None:
    masks = magnitude_masks({"w": torch.tensor([[1.0, -3.0, 2.0], [-2.0, 2.0, 0.5]])}, 0.5)
    assert masks["w"].tolist() == [[False, True, True], [True, False, False]]


def test_random_masks_follow_the_seed() -> None:
    weights = {"a": torch.zeros(100, 10), "b": torch.zeros(100, 10)}
    first, again, other = (random_masks(weights, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])


def test_wrap_shares_the_weights_and_computes_the_subnetwork(tiny_bert) -> None:
    model = load_masked_language_model(str(tiny_bert)).model.eval()
    pruned = load_masked_language_model(str(tiny_bert)).model.eval()
    weights = prunable_weights(model)
    masks = magnitude_masks(weights, 0.6)
    apply_masks(pruned, masks)
    masked = wrap(model, masks)
    assert all(module.weight is weights[name] for name, module in masked.items())
    assert all(torch.equal(masks[name], mask) for name, mask in masks_of(masked).items())
    ids = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(model(ids).logits, pruned(ids).logits)
    assert sparsity_of(masks_of(masked)) == pytest.approx(0.6, abs=0.001)


def test_masks_stay_exact_through_training(tiny_bert) -> None:
    model = load_masked_language_model(str(tiny_bert)).model
    masks = magnitude_masks(prunable_weights(model), 0.7)
    masked = wrap(model, masks)
    optimizer = torch.optim.AdamW([module.score for module in masked.values()], lr=5e-3)
    ids = torch.arange(5, 25).view(2, 10)
    for _ in range(5):
        model(ids).logits.pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        tk.update_masks(masked.values())
        for name, mask in masks_of(masked).items():
            assert int(mask.sum()) == int(masks[name].sum())
    assert any(not torch.equal(masks[name], mask) for name, mask in masks_of(masked).items())


def test_apply_masks_zeroes_only_the_pruned(tiny_bert) -> None:
    model = load_masked_language_model(str(tiny_bert)).model
    before = {name: w.detach().clone() for name, w in prunable_weights(model).items()}
    decoder = model.get_output_embeddings().weight.detach().clone()
    masks = magnitude_masks(before, 0.5)
    apply_masks(model, masks)
    for name, weight in prunable_weights(model).items():
        assert torch.equal(weight, torch.where(masks[name], before[name], 0))
    assert torch.equal(model.get_output_embeddings().weight, decoder)


def test_a_mask_for_another_model_is_named(tiny_bert, tiny_roberta) -> None:
    bert, roberta = (load_masked_language_model(str(folder)).model for folder in (tiny_bert, tiny_roberta))
    masks = magnitude_masks(prunable_weights(bert), 0.5)
    check_fits(masks, bert)
    masks["encoder.layer.0.output.dense.weight"] = torch.ones(3, 3, dtype=torch.bool)
    del masks["encoder.layer.1.output.dense.weight"]
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense\.weight is missing.*\[3, 3\] where the model has"):
        check_fits(masks, bert)
    masks["nonsense.weight"] = torch.ones(1, dtype=torch.bool)
    with pytest.raises(UserError, match=r"nonsense\.weight is not a matrix"):
        check_fits(masks, roberta)


def test_a_pooler_mask_is_left_out_where_there_is_no_pooler(tiny_bert) -> None:
    model = load_masked_language_model(str(tiny_bert)).model
    masks = magnitude_masks(prunable_weights(model), 0.5)
    masks["pooler.dense.weight"] = torch.zeros(32, 32, dtype=torch.bool)
    apply_masks(model, masks)
    assert isinstance(model.base_model.get_input_embeddings(), nn.Embedding)
