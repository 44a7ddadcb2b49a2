"""The objectives: what is masked, what counts, what trains."""

import pytest
import torch
import torch.nn.functional as F

import tamt_kernels as tk
from tamt.data.token_masking import IGNORED, TokenMasking, prepare
from tamt.masks.masking import apply_masks, magnitude_masks, prunable_weights, wrap
from tamt.models.language_model import load_masked_language_model
from tamt.models.speed import dense_twin
from tamt.objectives import Losses, kd_loss, mlm_loss


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 28, (4, 12), generator=generator)
    ids[:, 0], ids[:, -1] = 2, 3
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, [0, -1]] = True
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "special": special}


def test_15_percent_are_chosen_and_80_10_10_of_them_replaced() -> None:
    ids = torch.full((200, 500), 7)
    batch = {"input_ids": ids, "special": torch.zeros_like(ids, dtype=torch.bool)}
    masked = TokenMasking(4, 1000)(batch, torch.Generator().manual_seed(0))
    chosen = masked["labels"] != IGNORED
    now = masked["input_ids"][chosen]
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.005)
    assert (now == 4).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert ((now != 4) & (now != 7)).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (masked["labels"][chosen] == 7).all()
    assert torch.equal(masked["input_ids"][~chosen], ids[~chosen])


def test_special_tokens_and_padding_are_never_masked(batch) -> None:
    masking = TokenMasking(4, 28, probability=1.0)
    masked = masking(batch, torch.Generator().manual_seed(0))
    assert (masked["labels"][batch["special"]] == IGNORED).all()
    assert torch.equal(masked["input_ids"][batch["special"]], batch["input_ids"][batch["special"]])


def test_masking_depends_on_the_generator_alone(batch) -> None:
    masking = TokenMasking(4, 28)
    torch.manual_seed(0)
    first = masking(batch, torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    assert torch.equal(first["input_ids"], masking(batch, torch.Generator().manual_seed(5))["input_ids"])
    assert not torch.equal(first["input_ids"], masking(batch, torch.Generator().manual_seed(6))["input_ids"])


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_roberta"])
def test_mlm_equals_hugging_face_on_masked_positions(family, request, batch) -> None:
    student = load_masked_language_model(str(request.getfixturevalue(family)))
    student.model.eval()
    masked = TokenMasking(4, 28)(batch, torch.Generator().manual_seed(0))
    hugging_face = student.model(
        input_ids=masked["input_ids"], attention_mask=masked["attention_mask"], labels=masked["labels"]
    ).loss
    ours = Losses({"mlm": 1.0}, student)(prepare(masked))
    torch.testing.assert_close(ours["loss"], hugging_face)
    assert torch.equal(ours["mlm"], ours["loss"])


def test_mlm_of_no_masked_token_is_zero(tiny_bert, batch) -> None:
    student = load_masked_language_model(str(tiny_bert))
    plain = prepare({**batch, "labels": torch.full((4, 12), IGNORED)})
    assert mlm_loss(student, torch.zeros(4, 12, 32), plain).item() == 0


def test_what_is_prepared(batch) -> None:
    masked = TokenMasking(4, 28)(batch, torch.Generator().manual_seed(0))
    prepared = prepare(masked)
    chosen = masked["labels"] != IGNORED
    assert torch.equal(prepared["labels"], masked["labels"][chosen])
    assert torch.equal(prepared["positions"], torch.arange(48)[chosen.flatten()])
    assert (prepared["masked_tokens"], prepared["real_tokens"]) == (chosen.sum(), 48)
    assert "attention_mask" not in prepared
    padded = prepare({**batch, "attention_mask": torch.tensor([[1] * 12] * 3 + [[1] * 5 + [0] * 7])})
    assert padded["real_tokens"] == 41
    assert "attention_mask" in padded


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_roberta"])
def test_the_decoder_is_dense_and_frozen_while_the_embedding_is_masked(family, request, batch) -> None:
    student = load_masked_language_model(str(request.getfixturevalue(family)))
    student.model.requires_grad_(False)
    head = student.head_parameters()
    for parameter in head.values():
        parameter.requires_grad_(True)
    original = student.model.get_input_embeddings().weight.detach().clone()
    masked = wrap(student.model, magnitude_masks(prunable_weights(student.model), 0.9))
    decoder = student.model.get_output_embeddings()
    assert id(decoder.weight) not in {id(p) for p in head.values()}
    optimizer = torch.optim.AdamW([*head.values(), *(m.score for m in masked.values())], lr=0.1)
    Losses({"mlm": 1.0}, student)(prepare(TokenMasking(4, 28)(batch, torch.Generator().manual_seed(0))))[
        "loss"
    ].backward()
    optimizer.step()
    tk.update_masks(masked.values())
    assert decoder.weight.grad is None
    assert torch.equal(decoder.weight, original)
    assert all(parameter.grad is not None for parameter in head.values())
    assert (masked["embeddings.word_embeddings.weight"].masked_weight() == 0).float().mean() > 0.85


def test_the_decoder_stays_dense_when_the_embedding_is_cut_in_place(tiny_bert) -> None:
    student = load_masked_language_model(str(tiny_bert))
    original = student.model.get_input_embeddings().weight.detach().clone()
    apply_masks(student.model, magnitude_masks(prunable_weights(student.model), 0.9))
    assert torch.equal(student.model.get_output_embeddings().weight, original)
    assert not torch.equal(student.model.get_input_embeddings().weight, original)


def test_kd_is_the_mean_over_layers_and_real_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (tuple(torch.randn(2, 3, 8, generator=generator) for _ in range(4)) for _ in range(2))
    batch = prepare({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])})
    terms = [
        1 - F.cosine_similarity(teacher[layer][i, j], student[layer][i, j], dim=0)
        for layer in (1, 2, 3)
        for i, j in ((0, 0), (0, 1), (1, 0))
    ]
    torch.testing.assert_close(kd_loss(teacher, student, batch), torch.stack(terms).mean())


def test_the_gradient_of_kd_is_that_of_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(2, 3, 8, generator=generator) for _ in range(4)]
    hidden[1][0, 0] = hidden[2][0, 1] = 0.0  # a teacher's and a student's that have no direction
    student = [each.requires_grad_() for each in hidden[2:]]
    with torch.inference_mode():
        teacher = [each + 0 for each in hidden[:2]]
    batch = prepare({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])})
    (found,) = torch.autograd.grad(kd_loss((teacher[0], teacher[1]), (student[1], student[0]), batch), student[0])
    cosine = F.cosine_similarity(hidden[1], student[0], dim=-1)
    (expected,) = torch.autograd.grad(((1 - cosine) * batch["attention_mask"]).sum() / 5, student[0])
    assert found.isfinite().all()
    found[0, 1] = expected[0, 1] = 0.0  # 0 / 0, which torch takes to be something else
    torch.testing.assert_close(found, expected)
    assert found[0, 2].any()


def test_padding_is_outside_the_kd_mean(tiny_bert, batch) -> None:
    student = load_masked_language_model(str(tiny_bert))
    student.model.eval()
    teacher = dense_twin(student.encoder)
    wrap(student.encoder, magnitude_masks(prunable_weights(student.encoder), 0.7))
    padded = {name: F.pad(tensor, (0, 6), value=True if name == "special" else 0) for name, tensor in batch.items()}
    losses = Losses({"kd": 1.0}, student, teacher)
    torch.testing.assert_close(losses(prepare(padded))["loss"], losses(prepare(batch))["loss"])
    assert losses(prepare(batch))["loss"].item() > 0.01


def test_the_teacher_is_dense_in_eval_mode_and_shares_the_weights(tiny_bert, batch) -> None:
    student = load_masked_language_model(str(tiny_bert))
    teacher = dense_twin(student.encoder)
    wrap(student.encoder, magnitude_masks(prunable_weights(student.encoder), 0.7))
    student.model.train()
    assert not any(module.training for module in teacher.modules())
    shared = prunable_weights(student.encoder)
    assert all(weight is shared[name] for name, weight in prunable_weights(teacher).items())
    # Without dropout the teacher says the same twice; were it in train mode it would not.
    first, second = (teacher(batch["input_ids"]).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)


def test_mlm_and_kd_add_up_on_the_same_masked_tokens(tiny_bert, batch) -> None:
    student = load_masked_language_model(str(tiny_bert))
    student.model.eval()
    teacher = dense_twin(student.encoder)
    wrap(student.encoder, magnitude_masks(prunable_weights(student.encoder), 0.7))
    masked = prepare(TokenMasking(4, 28)(batch, torch.Generator().manual_seed(0)))
    both = Losses({"mlm": 1.0, "kd": 3.0}, student, teacher)(masked)
    torch.testing.assert_close(both["mlm"], Losses({"mlm": 1.0}, student)(masked)["loss"])
    torch.testing.assert_close(both["kd"], Losses({"kd": 1.0}, student, teacher)(masked)["loss"])
    torch.testing.assert_close(both["loss"], both["mlm"] + 3 * both["kd"])


def test_sums_and_means_agree(tiny_bert, batch) -> None:
    student = load_masked_language_model(str(tiny_bert))
    student.model.eval()
    teacher = dense_twin(student.encoder)
    wrap(student.encoder, magnitude_masks(prunable_weights(student.encoder), 0.7))
    masked = prepare(TokenMasking(4, 28)(batch, torch.Generator().manual_seed(0)))
    tokens = {"mlm": int(masked["masked_tokens"]), "kd": int(masked["real_tokens"])}
    for objective, count in tokens.items():
        losses = Losses({objective: 1.0}, student, teacher)
        one = torch.ones(())
        sums = losses({**masked, "masked_tokens": one, "real_tokens": one})
        torch.testing.assert_close(sums["loss"] / count, losses(masked)["loss"])
