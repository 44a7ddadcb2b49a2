"""The scores and masks that mask training starts from, against their definitions."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tamt_kernels as tk
from tamt.data.corpora import Blocks, load_corpus, train_batches
from tamt.masks.file import load_masks, save_masks
from tamt.masks.masking import keep_of, magnitude_masks, prunable_modules, prunable_weights, random_masks, top_masks
from tamt.methods import METHODS
from tamt.models.language_model import load_masked_language_model
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.choices import DEFAULT_SCORES, scores_of_start
from tamt.runtime.errors import UserError
from tamt.search import mask_training
from tamt.search.calibration import CALIBRATION_BLOCKS, input_norms
from tamt.search.learning_rate import default_rate
from tamt.search.scores import scores_for
from tamt.search.train import train

SHAPE = (40, 50)
TINY = 2.0**-149


def drawn(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def neighbours() -> Tensor:
    """Magnitudes one unit in the last place apart, which a product or a quotient may round to one value."""
    return (
        (torch.tensor(0.37).view(torch.int32) + torch.randperm(2000, generator=torch.Generator().manual_seed(0)))
        .to(torch.int32)
        .view(torch.float32)
        .view(SHAPE)
    )


IMPORTANCE = {
    "gaussian": drawn().abs(),
    "ties": drawn().mul(2).round().abs(),
    "all equal": torch.full(SHAPE, 3.0),
    "all zero": torch.zeros(SHAPE),
    "mostly zero": drawn().abs() * (drawn(1) > 1.5),
    "denormal": torch.randint(0, 40, SHAPE, generator=torch.Generator().manual_seed(0)) * TINY,
    "denormal and large": torch.where(drawn() > 0, drawn(1).abs() * 1e30, torch.tensor(TINY)),
    "neighbours": neighbours(),
}


def mask_by_sorting(importance: Tensor, keep: int) -> Tensor:
    """The largest first, of equal ones the lower flat index."""
    order = importance.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(importance.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.view(importance.shape)


@pytest.mark.parametrize("keep", [0, 1, 600, 1999, 2000])
@pytest.mark.parametrize("kind", IMPORTANCE)
def test_scores_rank_into_exactly_the_mask(kind: str, keep: int) -> None:
    importance = IMPORTANCE[kind]
    mask = mask_by_sorting(importance, keep)
    score = scores_for(importance, mask)
    assert score.dtype == torch.float32
    assert score.isfinite().all()
    assert (score >= 0).all()
    for ranking in ("signed", "abs"):
        value, cut = (t[0] for t in tk.topk_threshold([score], [keep], ranking=ranking))
        assert torch.equal(tk.binarize(score, value, cut, ranking=ranking), mask)
    threshold = torch.tensor(0.01)
    assert torch.equal(score >= threshold, mask)


def test_scores_are_proportional_to_the_importance() -> None:
    importance = drawn().abs()
    mask = mask_by_sorting(importance, 600)
    smallest = importance[mask].min()
    torch.testing.assert_close(scores_for(importance, mask), 0.01 * importance / smallest, rtol=1e-6, atol=0)


def test_a_mask_of_another_criterion_is_kept_too() -> None:
    importance, mask = drawn().abs(), drawn(1) > 0
    score = scores_for(importance, mask)
    assert torch.equal(score >= torch.tensor(0.01), mask)
    t = importance.flatten().topk(int(mask.sum())).values[-1]
    agrees = mask == (importance >= t)
    torch.testing.assert_close(score[agrees], 0.01 * importance[agrees] / t, rtol=1e-6, atol=0)
    torch.testing.assert_close(score[~agrees], torch.full_like(score[~agrees], 0.01), rtol=1e-6, atol=0)


# Calibration


@pytest.fixture
def blocks(tiny_bert: Path, corpus: Path) -> Blocks:
    return load_corpus([str(corpus)], None, load_tokenizer(str(tiny_bert)), 16)[0]


def plain_norms(encoder, blocks: Blocks, seed: int) -> dict[str, Tensor]:
    """‖x‖ of the input features of the layers, block by block, from the tensors that each layer is given."""
    encoder.eval()
    seen: dict[str, list[Tensor]] = {}
    linear = {name: m for name, m in prunable_modules(encoder).items() if isinstance(m, torch.nn.Linear)}
    forward = torch.nn.Linear.forward
    names = {module: name for name, module in linear.items()}

    def watched(self, x: Tensor) -> Tensor:
        if self in names:
            seen.setdefault(names[self], []).append(x[0])
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(tk.Linear, "forward", watched)
        chosen = next(train_batches(blocks, min(CALIBRATION_BLOCKS, len(blocks)), seed, 0))
        for ids, real in zip(chosen["input_ids"], chosen["attention_mask"], strict=True):
            encoder(input_ids=ids[None, : int(real.sum())])
    return {name: torch.cat(inputs).norm(dim=0) for name, inputs in seen.items()}


@pytest.mark.parametrize("count", [5, 200])
def test_input_norms_are_those_of_the_real_tokens(count: int, blocks: Blocks, tiny_bert: Path) -> None:
    blocks, _ = blocks.split(count)
    blocks.tokens = blocks.tokens[:-5]  # the last block is padded
    encoder = load_masked_language_model(str(tiny_bert)).encoder
    found = input_norms(encoder, blocks, 3, 7, torch.device("cpu"))
    expected = plain_norms(encoder, blocks, 7)
    assert found.keys() == expected.keys() == {n for n in prunable_modules(encoder) if "embedding" not in n}
    for name, norms in expected.items():
        torch.testing.assert_close(found[name], norms, rtol=1e-5, atol=1e-6)


def test_a_matrix_that_reads_nothing_is_reported_and_has_no_norms(blocks: Blocks, tiny_bert: Path, capsys) -> None:
    encoder = load_masked_language_model(str(tiny_bert)).encoder
    layer = encoder.encoder.layer[1]
    layer.unused = torch.nn.Linear(4, 4)
    found = input_norms(encoder, blocks, 8, 0, torch.device("cpu"))
    assert len(found) == len(prunable_modules(encoder)) - 2, "nor has the embedding"
    assert "1 matrices read no input of the model, encoder.layer.1.unused the first" in capsys.readouterr().err


# Searches


@pytest.fixture
def first_masks(tmp_path: Path, corpus: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    """The masks and scores that a search starts from, and its row of results."""

    def call(output: str = "run", **options) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        start, seen = mask_training.start, {}

        def watched(*arguments, **settings):
            masked, *rest = start(*arguments, **settings)
            seen["masks"] = {name: module.mask for name, module in masked.items()}
            seen["scores"] = {name: module.score.detach().clone() for name, module in masked.items()}
            return masked, *rest

        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "steps": 3, **options}
        with monkeypatch.context() as patch:
            patch.setattr(mask_training, "start", watched)
            row = train(method="tamt-kd", output=tmp_path / output, **settings)["results"][-1]
        return seen["masks"], seen["scores"], row

    return call


@pytest.mark.parametrize(
    "options",
    [
        {"scores": "magnitude"},
        {"scores": "two-valued"},
        {"initial": "omp"},
        {"recipe": "paper"},
        {"scores": "activation", "initial": "omp"},
    ],
)
def test_the_first_mask_is_omp_s_bit_for_bit(options: dict, first_masks, tiny_bert: Path) -> None:
    masks, scores, _ = first_masks(**options)
    expected = magnitude_masks(prunable_weights(load_masked_language_model(str(tiny_bert)).model), 0.7)
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())
    values = {len(score.unique()) for score in scores.values()}
    graded = options.get("scores") in ("magnitude", "activation")
    assert (values == {2}) != graded


def test_the_first_mask_of_activation_scores_is_wanda_s(first_masks, blocks: Blocks, tiny_bert: Path) -> None:
    assert DEFAULT_SCORES == "activation"
    masks, _, _ = first_masks(seed=3)
    encoder = load_masked_language_model(str(tiny_bert)).encoder
    norms = plain_norms(encoder, blocks, 3)
    weights = {name.removesuffix(".weight"): weight for name, weight in prunable_weights(encoder).items()}
    importance = {name: weight.abs() * norms.get(name, torch.ones(1)) for name, weight in weights.items()}
    for name, mask in top_masks({name: c.detach() for name, c in importance.items()}, 0.7).items():
        assert int((mask ^ masks[f"{name}.weight"]).sum()) <= 2, name  # entries of almost equal importance
    omp = magnitude_masks(prunable_weights(encoder), 0.7)
    assert not all(torch.equal(omp[name], mask) for name, mask in masks.items())
    assert torch.equal(omp["embeddings.word_embeddings.weight"], masks["embeddings.word_embeddings.weight"])


def test_random_and_file_masks_start_from_two_values(first_masks, tmp_path: Path, tiny_bert: Path) -> None:
    weights = prunable_weights(load_masked_language_model(str(tiny_bert)).model)
    masks, scores, _ = first_masks("random", initial="random", seed=4)
    assert all(torch.equal(masks[name], mask) for name, mask in random_masks(weights, 0.7, 4).items())
    former = tmp_path / "random" / "mask.safetensors"
    for name, given in (("folder", former.parent), ("file", former)):
        masks, scores, row = first_masks(name, initial=str(given))
        assert all(torch.equal(masks[name], mask) for name, mask in load_masks(former)[0].items())
    assert all(score.unique().tolist() == pytest.approx([0.0, 0.02]) for score in scores.values())
    assert row["sparsity"] == pytest.approx(0.7, abs=0.002)


def test_a_mask_of_another_sparsity_or_model_is_refused(first_masks, tmp_path: Path, tiny_bert: Path) -> None:
    train(method="omp", model=str(tiny_bert), output=tmp_path / "omp", sparsity=0.5)
    mask = str(tmp_path / "omp" / "mask.safetensors")
    with pytest.raises(UserError, match=r"prunes 0.5 of .*, not 0.7; give its own --sparsity \(0.5\)"):
        first_masks(initial=mask)
    masks, info = load_masks(Path(mask))
    masks.popitem()
    save_masks(tmp_path / "other.safetensors", masks, info)
    with pytest.raises(UserError, match=r"the mask .* has none for .*weight; give a mask of every matrix$"):
        first_masks(initial=str(tmp_path / "other.safetensors"), sparsity=0.5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["scores", "initial"])
def test_only_mask_training_has_a_start(option: str, tmp_path: Path, tiny_bert: Path) -> None:
    value = {"scores": "magnitude", "initial": "omp"}[option]
    with pytest.raises(UserError, match=f"--{option} is for tamt-mlm, tamt-kd.*, not omp"):
        train(method="omp", model=str(tiny_bert), output=tmp_path / "run", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("scores", ["magnitude", "activation"])
def test_masks_stay_exact_while_graded_scores_train(scores: str, first_masks, tmp_path: Path) -> None:
    first_masks(scores=scores, steps=20, save_at=[7], lr=3e-3)
    for name in ("mask.safetensors", "masks/step-7.safetensors"):
        masks, _ = load_masks(tmp_path / "run" / name)
        assert all(int(mask.sum()) == keep_of(mask.numel(), 0.7) for mask in masks.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("changed", 0) for line in lines) > 0


def test_the_dropout_of_a_run_does_not_depend_on_the_calibration(first_masks, losses_of, tmp_path: Path) -> None:
    first_masks("a", initial="omp", scores="activation", lr=1e-12, log_every=1)
    first_masks("b", initial="omp", scores="two-valued", lr=1e-12, log_every=1)
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")


# Recipe and learning rate


def test_an_option_wins_over_the_recipe(first_masks, tmp_path: Path) -> None:
    def rate(output: str) -> float:
        lines = [json.loads(line) for line in (tmp_path / output / "metrics.jsonl").read_text().splitlines()]
        return next(line["lr"] for line in lines if "lr" in line)

    _, scores, _ = first_masks("paper", recipe="paper", steps=2, log_every=1)
    assert rate("paper") == pytest.approx(2e-5 / 2)
    assert all(len(score.unique()) == 2 for score in scores.values())
    _, scores, _ = first_masks("mine", recipe="paper", steps=2, log_every=1, lr=1e-3, scores="magnitude")
    assert rate("mine") == pytest.approx(1e-3 / 2)
    assert all(len(score.unique()) > 2 for score in scores.values())
    first_masks("short", steps=2, log_every=1)
    assert rate("short") == pytest.approx(3e-4 / 2)


@pytest.mark.parametrize(
    ("method", "scores", "steps", "sparsity", "rate"),
    [
        ("tamt-kd", "two-valued", 12, 0.7, 1e-3),
        ("tamt-kd", "two-valued", 150, 0.7, 3e-4),
        ("tamt-kd", "two-valued", 17_000, 0.7, 2e-5),
        ("tamt-kd", "activation", 12, 0.7, 3e-4),
        ("tamt-kd", "magnitude", 600, 0.7, 3e-4),
        ("tamt-kd", "activation", 3_000, 0.7, 6e-5),
        ("tamt-kd", "activation", 150, 0.5, 3e-4),
        ("tamt-kd", "activation", 150, 0.8, 3e-4),
        ("tamt-kd", "activation", 150, 0.9, 6e-4),
        ("tamt-kd", "activation", 150, 0.99, 6e-4),
        ("tamt-kd", "activation", 600, 0.9, 3e-4),
        ("tamt-kd", "two-valued", 150, 0.9, 3e-4),
        ("tamt-kd", "activation", 17_000, 0.7, 2e-5),
        ("tamt-mlm", "activation", 17_000, 0.7, 5e-5),
        ("imp", "activation", 10, 0.7, 5e-5),
        ("omp", "activation", 10, 0.7, None),
    ],
)
def test_default_rates(method: str, scores: str, steps: int, sparsity: float, rate: float | None) -> None:
    assert default_rate(METHODS[method], scores, steps, sparsity) == (None if rate is None else pytest.approx(rate))


def test_groups_move_more_slowly() -> None:
    kd = METHODS["tamt-kd"]
    rates = [default_rate(kd, "activation", steps, 0.9, groups=True) for steps in (60, 300, 3_000)]
    assert rates == pytest.approx([1e-4, 5e-5, 2e-5])
    assert default_rate(kd, "two-valued", 150, 0.5, groups=True) == pytest.approx(3e-4)


def test_a_start_that_is_asked_for_has_two_values() -> None:
    assert scores_of_start(None, None) == DEFAULT_SCORES
    assert scores_of_start(None, "random") == "two-valued"
    assert scores_of_start("magnitude", "random") == "magnitude"
