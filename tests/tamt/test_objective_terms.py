"""Attention, logits and contrastive losses against plain definitions, their sums, and searches with them."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from tamt import objectives
from tamt.data.token_masking import IGNORED, TokenMasking, prepare
from tamt.masks.file import load_masks
from tamt.masks.masking import keep_of, magnitude_masks, prunable_weights, wrap
from tamt.models import decoder_rows
from tamt.models.decoder_divergence import decoder_divergence
from tamt.models.language_model import load_masked_language_model
from tamt.models.relations import projections_of, relation_heads, relation_loss
from tamt.models.speed import dense_twin
from tamt.objectives import Losses, contrastive_loss
from tamt.runtime.errors import UserError
from tamt.search.imp import Losses as LossesOfImp
from tamt.search.train import train
from tamt.terms import TERMS, needs_head, parse_objective


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Four blocks of 12 tokens, the last one with 7 of padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 28, (4, 12), generator=generator)
    ids[:, 0] = 2
    real = torch.ones_like(ids)
    real[3, 5:] = 0
    special = (real == 0) | (ids == 2)
    return {"input_ids": ids, "attention_mask": real, "special": special}


def masked(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return prepare(TokenMasking(4, 28, probability=0.4)(batch, torch.Generator().manual_seed(0)))


@pytest.fixture
def pair(tiny_bert: Path):
    """A pruned student in eval mode and its dense teacher."""
    student = load_masked_language_model(str(tiny_bert))
    student.model.eval()
    teacher = dense_twin(student.encoder)
    wrap(student.encoder, magnitude_masks(prunable_weights(student.encoder), 0.7))
    return student, teacher


# Attention


def relations(x: Tensor, heads: int) -> list[Tensor]:
    """The relations of one block without padding, a matrix for each head."""
    return [F.softmax(part @ part.T / math.sqrt(part.shape[1]), dim=1) for part in x.chunk(heads, dim=1)]


@pytest.mark.parametrize(("width", "own", "heads"), [(24, 2, 12), (32, 4, 4)])
def test_attention_is_the_divergence_of_relations(width: int, own: int, heads: int, batch) -> None:
    assert relation_heads(width, own) == heads
    teacher, student = (tuple(draw(4, 12, width, seed=seed + i) for i in range(3)) for seed in (0, 10))
    student = tuple(each.requires_grad_() for each in student)
    prepared = prepare(batch)
    found = relation_loss(teacher, student, own, prepared["attention_mask"], prepared["real_tokens"])
    expected = torch.zeros(())
    for theirs, ours in zip(teacher, student, strict=True):
        for i, length in enumerate((12, 12, 12, 5)):
            pairs = zip(relations(theirs[i, :length], heads), relations(ours[i, :length], heads), strict=True)
            expected = expected + sum((p * (p / q).log()).sum() for p, q in pairs) / heads / 41
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, student), torch.autograd.grad(expected, student), rtol=1e-4, atol=1e-7
    )


def test_attention_without_padding_needs_no_mask() -> None:
    teacher, student = (tuple(draw(2, 5, 24, seed=seed + i) for i in range(3)) for seed in (0, 10))
    tokens = torch.tensor(10)
    torch.testing.assert_close(
        relation_loss(teacher, student, 12, None, tokens),
        relation_loss(teacher, student, 12, torch.ones(2, 5), tokens),
    )
    assert relation_loss(teacher, teacher, 12, None, tokens).item() == pytest.approx(0, abs=1e-6)


def test_attention_reads_the_last_layer(pair, batch) -> None:
    student, teacher = pair
    attention = student.encoder.encoder.layer[-1].attention.self
    assert projections_of(student.encoder) == [attention.query, attention.key, attention.value]
    seen = []
    for encoder in (teacher, student.encoder):
        layer = encoder.encoder.layer[-1].attention.self
        with torch.no_grad():
            hidden = encoder(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
            ).hidden_states[-2]
            seen.append(tuple(project(hidden) for project in (layer.query, layer.key, layer.value)))
    prepared = prepare(batch)
    found = Losses({"attention": 1.0}, student, teacher)(prepared)
    expected = relation_loss(*seen, 2, prepared["attention_mask"], prepared["real_tokens"])
    torch.testing.assert_close(found["loss"], expected)
    assert found["loss"].item() > 1e-4


def test_distilbert_shows_its_attention() -> None:
    encoder = DistilBertModel(DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=2, hidden_dim=64))
    attention = encoder.transformer.layer[-1].attention
    assert projections_of(encoder) == [attention.q_lin, attention.k_lin, attention.v_lin]


def test_an_attention_that_hides_its_queries_is_refused() -> None:
    encoder = BertModel(BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    attention = encoder.encoder.layer[-1].attention.self
    attention.fused = nn.Linear(32, 96)
    del attention.query
    with pytest.raises(UserError, match=r"the attention of BertModel has no separate layers.*--objective$"):
        projections_of(encoder)


# Logits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 30])
def test_the_divergence_is_that_of_the_logits(count: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_rows, "ROWS", 8)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(16, 60, bias=bias), nn.Linear(16, 60, bias=bias)
    ours.weight.requires_grad_(False)
    hidden, target = draw(count, 16).requires_grad_(), draw(count, 16, seed=1)
    counted = torch.arange(count) % 3 != 0
    found = decoder_divergence(hidden, ours, target, theirs, counted, 2.0)
    shares, wanted = F.log_softmax(ours(hidden) / 2, dim=1), F.softmax(theirs(target) / 2, dim=1)
    expected = 4 * F.kl_div(shares[counted], wanted[counted].detach(), reduction="sum")
    torch.testing.assert_close(found, expected)
    trained = [hidden, ours.bias] if bias else [hidden]
    torch.testing.assert_close(torch.autograd.grad(3 * found, trained), torch.autograd.grad(3 * expected, trained))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_the_divergence_under_autocast(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    layer, other = nn.Linear(16, 60), nn.Linear(16, 60)
    layer.weight.requires_grad_(False)
    hidden, target = draw(30, 16).requires_grad_(), draw(30, 16, seed=1)
    counted = torch.ones(30, dtype=torch.bool)
    exact = decoder_divergence(hidden, layer, target, other, counted, 2.0)
    with torch.autocast("cpu", dtype):
        found = decoder_divergence(hidden, layer, target, other, counted, 2.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=tolerance)
    for mine, wanted in zip(
        torch.autograd.grad(found, [hidden, layer.bias]), torch.autograd.grad(exact, [hidden, layer.bias]), strict=True
    ):
        assert (mine - wanted).norm() <= tolerance * wanted.norm()


def test_a_decoder_that_trains_is_refused() -> None:
    layer = nn.Linear(4, 6)
    with pytest.raises(ValueError, match="must be frozen"):
        decoder_divergence(draw(2, 4), layer, draw(2, 4), layer, torch.ones(2, dtype=torch.bool), 2.0)


def test_logits_are_compared_at_masked_positions_with_the_head_as_it_was(pair, batch) -> None:
    student, teacher = pair
    prepared = masked(batch)
    losses = Losses({"logits": 1.0}, student, teacher)
    with torch.no_grad():
        hidden = teacher(input_ids=prepared["input_ids"], attention_mask=prepared["attention_mask"])[0]
        target = student.decoder(student.transform(hidden)).flatten(0, 1)[prepared["positions"]]
        for parameter in student.head_parameters().values():  # as training would
            parameter.mul_(1.1)
        logits = student.model(
            input_ids=prepared["input_ids"], attention_mask=prepared["attention_mask"]
        ).logits.flatten(0, 1)[prepared["positions"]]
    expected = 4 * F.kl_div(F.log_softmax(logits / 2, 1), F.softmax(target / 2, 1), reduction="batchmean")
    torch.testing.assert_close(losses(prepared)["loss"], expected, rtol=1e-4, atol=1e-6)


def test_the_head_of_the_teacher_takes_no_gradient_and_shares_the_decoder(pair) -> None:
    student, _ = pair
    head = objectives.frozen_head(student)
    assert head.encoder is student.encoder
    assert head.decoder.weight is student.decoder.weight
    mine, theirs = student.head_parameters(), head.head_parameters()
    assert mine.keys() == theirs.keys()
    assert all(theirs[name] is not mine[name] and not theirs[name].requires_grad for name in mine)


# Contrastive


def test_contrastive_is_info_nce_of_the_blocks(batch) -> None:
    prepared = prepare(batch)
    views = [draw(4, 12, 8, seed=seed).requires_grad_() for seed in (0, 1)]
    means = [[view[i, :length].mean(0) for i, length in enumerate((12, 12, 12, 5))] for view in views]
    expected = torch.zeros(())
    for i in range(4):
        similar = torch.stack([F.cosine_similarity(means[0][i], other, dim=0) / 0.05 for other in means[1]])
        expected = expected - similar.log_softmax(0)[i] / 4
    found = contrastive_loss(*views, prepared)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, views), torch.autograd.grad(expected, views))


def test_the_two_views_differ_by_dropout_alone(pair, batch) -> None:
    student, _ = pair
    prepared = prepare({**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
    losses = Losses({"contrastive": 1.0}, student)
    last = student.encoder(input_ids=prepared["input_ids"]).last_hidden_state
    torch.testing.assert_close(losses(prepared)["loss"], contrastive_loss(last, last, prepared))
    student.model.train()
    torch.manual_seed(0)
    assert losses(prepared)["loss"].item() != pytest.approx(contrastive_loss(last, last, prepared).item(), rel=1e-2)


# Sums


EACH = list(TERMS)


def test_a_weighted_sum_is_one_loss_and_runs_each_model_once(pair, batch, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = pair
    prepared = masked(batch)
    alone = {name: Losses({name: 1.0}, student, teacher)(prepared)["loss"] for name in EACH}
    weights = {name: 0.5 + number for number, name in enumerate(EACH)}
    together = Losses(weights, student, teacher)
    calls: list[PreTrainedModel] = []
    encode = objectives.encode

    def counted(model: PreTrainedModel, *arguments, **options):
        calls.append(model)
        return encode(model, *arguments, **options)

    monkeypatch.setattr(objectives, "encode", counted)
    parts = together(prepared)
    assert calls == [teacher, student.encoder]
    assert list(parts) == [*EACH, "loss"]
    for name in EACH:
        torch.testing.assert_close(parts[name], alone[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["loss"], sum(weights[name] * parts[name] for name in EACH))


@pytest.mark.parametrize("name", EACH)
def test_every_term_reaches_the_scores(name: str, pair, batch) -> None:
    student, teacher = pair
    student.model.train()
    torch.manual_seed(0)
    Losses({name: 1.0}, student, teacher)(masked(batch))["loss"].backward()
    layer = student.encoder.encoder.layer
    assert layer[0].output.dense.score.grad.abs().sum() > 0
    last = layer[-1].output.dense.score.grad
    assert (last is None or not last.any()) == (name == "attention")  # which compares what comes before


@pytest.mark.parametrize("name", EACH)
def test_the_shares_of_a_step_add_up(name: str, pair, batch) -> None:
    student, teacher = pair
    prepared = masked(batch)
    losses = Losses({name: 1.0}, student, teacher)
    counts = {"mlm": "masked_tokens", "logits": "masked_tokens", "contrastive": "blocks"}
    one = torch.ones(())
    sums = losses({**prepared, "masked_tokens": one, "real_tokens": one, "blocks": one})
    count = prepared[counts.get(name, "real_tokens")]
    torch.testing.assert_close(sums["loss"] / count, losses(prepared)["loss"])


def test_places_beyond_the_masked_tokens_change_nothing(pair, batch) -> None:
    student, teacher = pair
    losses = Losses({"logits": 1.0, "mlm": 1.0}, student, teacher)
    tokens = TokenMasking(4, 28, probability=0.4)(batch, torch.Generator().manual_seed(0))
    wide = prepare(tokens, 40)
    assert (wide["labels"] == IGNORED).any()
    torch.testing.assert_close(losses(wide), losses(prepare(tokens)))


# Searches


@pytest.fixture
def run(tmp_path: Path, corpus: Path, tiny_bert: Path):
    def call(output: str = "run", method: str = "tamt", **options) -> dict:
        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "steps": 12, **options}
        return train(method=method, output=tmp_path / output, **settings)["results"][-1]

    return call


@pytest.mark.parametrize(
    "objective", ["attention", "logits", "contrastive", "kd:1,attention:1,mlm:0.5", "kd:1,contrastive:0.1,logits:0.5"]
)
def test_a_search_for_each_objective(objective: str, run, tmp_path: Path) -> None:
    result = run(objective=objective, log_every=3, steps=40)
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert all(int(mask.sum()) == keep_of(mask.numel(), 0.7) for mask in masks.values())
    assert result["changed"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = parse_objective(objective)
    for line in (line for line in lines if "loss" in line):
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()), rel=1e-4)
    assert (tmp_path / "run" / "head.safetensors").exists() == needs_head(weights)


def test_a_named_method_is_its_sum(run, tmp_path: Path) -> None:
    for name, objective in {"tamt-kd": "kd", "tamt-mlm": "mlm", "tamt-mlm+kd": "mlm:1,kd:1"}.items():
        run(name, method=name, lr=1e-3)
        run(objective.replace(":", ""), objective=objective, lr=1e-3)
        masks = [load_masks(tmp_path / f / "mask.safetensors")[0] for f in (name, objective.replace(":", ""))]
        assert all(torch.equal(mask, masks[1][key]) for key, mask in masks[0].items())


def test_attention_lowers_its_own_loss(run, tmp_path: Path, losses_of) -> None:
    run(objective="attention", steps=80, lr=3e-3, log_every=1)
    losses = losses_of(tmp_path / "run")
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("objective", ["attention:1,logits:1", "kd:1,contrastive:1"])
def test_a_resumed_search_ends_with_the_same_mask(objective: str, run, tmp_path: Path, monkeypatch) -> None:
    options = {"objective": objective, "steps": 20, "save_every": 5}
    run("alone", **options)
    calls, loss = 0, LossesOfImp.__call__

    def interrupted(self, *arguments):
        nonlocal calls
        calls += self.student.model.training
        if calls == 13:
            raise KeyboardInterrupt
        return loss(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LossesOfImp, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", **options)
    run("stopped", **options, resume=True)
    alone, resumed = (load_masks(tmp_path / output / "mask.safetensors")[0] for output in ("alone", "stopped"))
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)


def test_accumulation_equals_a_larger_batch(run, losses_of, tmp_path: Path, still: Path) -> None:
    options = {"model": str(still), "objective": "attention:1,logits:1,kd:1", "log_every": 1, "lr": 1e-3}
    run("large", batch_size=8, **options)
    run("small", batch_size=2, accumulation=4, **options)
    assert losses_of(tmp_path / "large") == pytest.approx(losses_of(tmp_path / "small"), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "tamt needs an objective; give one such as --objective kd:1,attention:1"),
        ({"objective": "kd,sop"}, "has no term of 'sop'"),
        ({"objective": "kd:0"}, "no weight above 0"),
        ({"objective": "kd", "method": "tamt-kd"}, "--objective is for tamt, not tamt-kd; leave it out"),
        ({"objective": "contrastive", "batch_size": 1}, "a batch has 1; raise --batch-size"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(options: dict, message: str, run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(**options)
    assert not (tmp_path / "run").exists()
