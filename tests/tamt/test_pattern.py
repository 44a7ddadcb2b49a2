"""Masks of a pattern such as 2:4: every method, their files, what starts from them, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from transformers import AutoModelForMaskedLM

import tamt
import tamt_kernels as tk
from tamt.cli import main
from tamt.masks.file import MaskInfo, load_masks, load_packed, save_masks, save_packed
from tamt.masks.masking import magnitude_masks, prunable_weights, random_masks
from tamt.masks.sparse_file import load_sparse_state
from tamt.methods import METHODS
from tamt.models.language_model import load_masked_language_model
from tamt.options.train import TrainOptions
from tamt.report.variants import variants
from tamt.runtime.errors import UserError
from tamt.search.imp import sparsity_at
from tamt.search.scores import scores_for
from tamt.search.train import train

HALF = tk.Pattern(2, 4)


@pytest.fixture
def run(tmp_path: Path, corpus: Path, tiny_bert: Path):
    """Call train on the tiny model; options given win."""

    def call(method: str, output: str = "run", **options) -> dict:
        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "steps": 10, **options}
        if "objective" in METHODS[method].variants:
            settings.setdefault("objective", "kd:1,attention:1")
        return train(method=method, output=tmp_path / output, **settings)["results"][-1]

    return call


@pytest.fixture
def weights(tiny_bert: Path) -> dict[str, torch.Tensor]:
    return prunable_weights(load_masked_language_model(str(tiny_bert)).model)


def keeps(mask: torch.Tensor, n: int, m: int) -> bool:
    return bool(mask.reshape(-1, m).sum(1).eq(n).all())


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.structures != "layers"])
def test_every_method_keeps_the_pattern(method, run, tmp_path: Path, weights) -> None:
    result = run(method, pattern="2:4", steps=20 if method == "imp" else 6)
    masks, info = load_masks(tmp_path / "run" / "mask.safetensors")
    assert masks.keys() == weights.keys()
    assert all(keeps(mask, 2, 4) for mask in masks.values())
    assert (info.pattern, info.sparsity, result["sparsity"]) == ("2:4", 0.5, 0.5)
    if method in {"omp", "rand"}:
        expected = magnitude_masks(weights, HALF) if method == "omp" else random_masks(weights, HALF, 0)
        assert all(torch.equal(masks[name], mask) for name, mask in expected.items())


def test_masks_learn(run, tmp_path: Path, weights) -> None:
    result = run("tamt-kd", pattern="1:4", scores="two-valued", steps=40, lr=1e-3)
    assert result["changed"] > 0.01
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert all(keeps(mask, 1, 4) for mask in masks.values())


def test_imp_prunes_whole_entries_of_a_group(run, tmp_path: Path) -> None:
    assert [sparsity_at(stage, HALF) for stage in range(1, 6)] == [None, None, tk.Pattern(3, 4), None, HALF]
    assert sparsity_at(1, tk.Pattern(15, 16)) == tk.Pattern(15, 16)
    run("imp", pattern="2:4", steps=20)
    masks, info = load_masks(tmp_path / "run" / "masks" / "sparsity-0.25.safetensors")
    assert info.pattern == "3:4"
    assert all(keeps(mask, 3, 4) for mask in masks.values())
    last, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert all((masks[name] | ~mask).all() for name, mask in last.items()), "what was pruned stays pruned"


def test_scores_begin_at_the_mask(weights) -> None:
    for name, weight in weights.items():
        importance = weight.detach().abs()
        importance.reshape(-1)[:8] = torch.tensor([0.0, 0, 0, 0, 1e-42, 1e-42, 0, 3])
        for mask in (magnitude_masks({name: importance}, HALF)[name], random_masks({name: weight}, HALF, 1)[name]):
            scores = scores_for(importance, mask, HALF)
            for ranking in ("signed", "abs"):
                assert torch.equal(tk.pattern_mask(scores, HALF, ranking=ranking), mask)


def test_a_search_starts_from_a_mask_of_its_pattern_only(run, tmp_path: Path) -> None:
    run("omp", "omp", pattern="2:4")
    run("omp", "free", sparsity=0.5)
    first = str(tmp_path / "omp" / "mask.safetensors")
    run("tamt-kd", "kd", pattern="2:4", initial=first, scores="magnitude")
    with pytest.raises(UserError, match=r"has the pattern 2:4, and in .* it does not keep 1:4; give a mask that was"):
        run("tamt-kd", "other", pattern="1:4", initial=first)
    with pytest.raises(UserError, match=r"has no pattern, and in .* it does not keep 2:4"):
        run("tamt-kd", "another", pattern="2:4", initial=str(tmp_path / "free" / "mask.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "4:2"}, "the pattern 4:2 is not N:M with 1 <= N < M <= 16; give 2:4"),
        ({"pattern": "2:32"}, "the pattern 2:32 is not N:M"),
        ({"pattern": "half"}, "the pattern half is not N:M"),
        ({"pattern": "2:4", "sparsity": 0.7}, "--pattern 2:4 has a sparsity of 0.5, not 0.7; leave --sparsity out"),
        ({"pattern": "2:4", "threshold_every": 5}, "--threshold-every is for masks with a threshold"),
        ({"pattern": "2:4", "method": "wanda", "scope": "row"}, "--scope and --pattern exclude each other"),
    ],
)
def test_options_that_cannot_be(options, message) -> None:
    with pytest.raises(UserError, match=message):
        TrainOptions(**{"method": "tamt-kd", "model": "any", "corpus": ["demo"], **options})


def test_a_pattern_that_does_not_divide_a_matrix_names_it(tiny_bert: Path, tmp_path: Path, capsys) -> None:
    words = ["train", "--method", "omp", "--model", str(tiny_bert), "--output", str(tmp_path / "run")]
    assert main([*words, "--pattern", "2:7"]) == 2
    error = capsys.readouterr().err
    assert "the pattern 2:7 does not fit the matrix embeddings.word_embeddings.weight, whose rows of" in error
    assert not (tmp_path / "run").exists()


def test_tickets_of_a_pattern(tiny_bert: Path, tmp_path: Path, weights) -> None:
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    largest, drawn = tamt.Ticket.magnitude(model, pattern="2:4"), tamt.Ticket.random(model, seed=1, pattern="1:4")
    assert all(torch.equal(largest.masks[name], mask) for name, mask in magnitude_masks(weights, HALF).items())
    assert all(keeps(mask, 1, 4) for mask in drawn.masks.values())
    assert "OMP, 50.0% of 17,280 pruned, pattern 2:4)" in repr(largest)
    assert "random, 75.0% of 17,280 pruned, pattern 1:4, seed 1)" in repr(drawn)
    drawn.save(tmp_path / "drawn.safetensors")
    assert tamt.Ticket.load(tmp_path / "drawn.safetensors") == drawn
    found = tamt.find_ticket(tiny_bert, "omp", pattern="2:4", output=tmp_path / "run")
    assert found.info.pattern == "2:4"
    assert found.similarity(largest) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither sparsity nor pattern is given; give one of them"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "both sparsity and pattern are given"),
        ({"pattern": "4:4"}, "the pattern 4:4 is not N:M"),
        ({"pattern": "2:7"}, "the pattern 2:7 does not fit the matrix"),
    ],
)
def test_tickets_that_cannot_be(given, message, tiny_bert: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    for make in (tamt.Ticket.magnitude, tamt.Ticket.random):
        with pytest.raises(UserError, match=message) as raised:
            make(model, **given)
        assert "--" not in str(raised.value)


def test_the_sparsity_follows_from_the_pattern() -> None:
    options = TrainOptions(method="omp", model="any", pattern="3:10")
    assert (options.share(), options.settings()["sparsity"], options.settings()["pattern"]) == (0.7, 0.7, "3:10")
    plain = TrainOptions(method="omp", model="any")
    assert plain.settings()["sparsity"] == 0.7
    assert "pattern" not in plain.settings()
    TrainOptions(method="omp", model="any", pattern="2:4", sparsity=0.5)


def test_a_file_that_claims_a_pattern_has_it(tmp_path: Path, weights) -> None:
    masks = magnitude_masks(weights, HALF)
    info = MaskInfo.of("any", "omp", HALF, 0, 0)
    save_masks(tmp_path / "mask.safetensors", masks, info, exact=True)
    packed = load_packed(tmp_path / "mask.safetensors")
    assert packed.info == info
    for wrong in ("1:4", "2:7", "4:8 ", "x"):
        save_packed(tmp_path / "wrong.safetensors", replace(packed, info=replace(info, pattern=wrong)))
        with pytest.raises(UserError, match="is damaged"):
            load_packed(tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"keeps \d+ entries where the pattern 2:4 keeps"):
        save_masks(tmp_path / "other.safetensors", magnitude_masks(weights, 0.7), info, exact=True)


def test_a_file_without_a_pattern_is_as_before(tmp_path: Path, weights) -> None:
    save_masks(tmp_path / "mask.safetensors", magnitude_masks(weights, 0.7), MaskInfo("any", "omp", 0.7, 0, 0))
    with safe_open(tmp_path / "mask.safetensors", framework="np") as file:
        assert "pattern" not in file.metadata()
    assert load_packed(tmp_path / "mask.safetensors").info.pattern is None


def test_compare_tells_patterns_from_sparsities(tmp_path: Path, weights, capsys) -> None:
    files = {"2:4": HALF, "4:8": tk.Pattern(4, 8), "half": 0.5}
    for name, sparsity in files.items():
        info = MaskInfo.of("any", "omp" if name == "2:4" else "tamt-kd", sparsity, 0, 0)
        save_masks(tmp_path / f"{name[0]}.safetensors", magnitude_masks(weights, sparsity), info)
    assert main(["compare", *(str(tmp_path / f"{name[0]}.safetensors") for name in files), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row.get("first_pattern"), row.get("second_pattern")) for row in rows] == [
        ("2:4", "4:8"),
        ("2:4", None),
        ("4:8", None),
    ]
    assert [row["second_omp_distance"] for row in rows] == [None] * 3, "OMP's distance is that of the same pattern"


def test_reports_name_the_pattern() -> None:
    configs = [{"method": "tamt-kd", "sparsity": 0.5}, {"method": "tamt-kd", "sparsity": 0.5, "pattern": "2:4"}]
    assert variants(configs) == [None, "2:4"]


def test_a_sparse_export_holds_the_pattern(run, tmp_path: Path, tiny_bert: Path, weights) -> None:
    run("omp", pattern="2:4")
    mask = tmp_path / "run" / "mask.safetensors"
    tamt.export(tiny_bert, ticket=mask, output=tmp_path / "out", format="sparse")
    state, (masks, _) = load_sparse_state(tmp_path / "out" / "sparse.safetensors"), load_masks(mask)
    with safe_open(tmp_path / "out" / "sparse.safetensors", framework="pt") as file:
        for name, weight in weights.items():
            assert torch.equal(state[f"bert.{name}"], weight * masks[name])
            zeros_of_its_own = int((weight == 0).sum())  # of the padding token
            values = len(file.get_tensor(f"bert.{name}.values"))
            assert values == (weight * masks[name]).count_nonzero() >= (weight.numel() - zeros_of_its_own) // 2


def test_an_export_of_2_of_4_is_what_semi_structured_products_take(run, tmp_path: Path, tiny_bert: Path) -> None:
    run("omp", pattern="2:4")
    words = ["export", "--model", str(tiny_bert), "--mask", str(tmp_path / "run" / "mask.safetensors")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    weights = prunable_weights(AutoModelForMaskedLM.from_pretrained(tmp_path / "out"))
    for weight in weights.values():
        assert (weight.reshape(-1, 4) != 0).sum(1).le(2).all()
        # torch's own conversion wants tiles of 32 x 64; it drops what is not 2:4.
        tiles = torch.nn.functional.pad(weight.detach(), (0, -weight.shape[1] % 64, 0, -weight.shape[0] % 32)).half()
        compressed = sparse_semi_structured_from_dense_cutlass(tiles)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(*compressed), tiles)
