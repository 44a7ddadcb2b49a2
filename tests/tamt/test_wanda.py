"""Wanda's masks against their plain definition."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tamt.data.corpora import load_corpus
from tamt.masks.file import load_masks
from tamt.masks.masking import keep_of, magnitude_masks, prunable_weights, top_masks
from tamt.models.language_model import load_masked_language_model
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError
from tamt.search.calibration import input_norms
from tamt.search.train import train
from tamt.search.wanda import masks_by_row, row_mask
from tamt.training.run_folder import finished_results


@pytest.fixture
def find(tmp_path: Path, corpus: Path, tiny_bert: Path):
    """The masks of a search by wanda."""

    def call(output: str = "run", **options) -> dict[str, Tensor]:
        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "seed": 2, **options}
        train(method="wanda", output=tmp_path / output, **settings)
        return load_masks(tmp_path / output / "mask.safetensors")[0]

    return call


@pytest.fixture
def importance(tiny_bert: Path, corpus: Path) -> dict[str, Tensor]:
    """|W_ij| · ‖x_j‖ of the tiny model, and |W| of its embedding."""
    encoder = load_masked_language_model(str(tiny_bert)).encoder
    blocks, _ = load_corpus([str(corpus)], None, load_tokenizer(str(tiny_bert)), 16)
    norms = input_norms(encoder, blocks, 16, 2, torch.device("cpu"))
    return {
        name: weight.detach().abs() * norms.get(name.removesuffix(".weight"), torch.ones(1))
        for name, weight in prunable_weights(encoder).items()
    }


def test_a_matrix_keeps_its_most_important_weights(find, importance, tiny_bert: Path) -> None:
    masks = find()
    assert all(torch.equal(masks[name], mask) for name, mask in top_masks(importance, 0.7).items())
    omp = magnitude_masks(prunable_weights(load_masked_language_model(str(tiny_bert)).encoder), 0.7)
    same = [name for name, mask in omp.items() if torch.equal(masks[name], mask)]
    assert same == ["embeddings.word_embeddings.weight"]


def test_by_row_each_output_keeps_as_many(find, importance) -> None:
    masks = find(scope="row")
    for name, mask in masks.items():
        assert int(mask.sum()) == keep_of(mask.numel(), 0.7)
        if "embedding" in name:
            assert torch.equal(mask, top_masks({name: importance[name]}, 0.7)[name])
            continue
        counts = mask.sum(1)
        assert int(counts.max() - counts.min()) <= 1
        for row, kept in zip(importance[name], mask, strict=True):
            assert row[kept].min() >= row[~kept].max()


@pytest.mark.parametrize("keep", [0, 1, 3, 7, 11, 12])
def test_row_mask_against_a_loop_over_rows(keep: int) -> None:
    generator = torch.Generator().manual_seed(keep)
    for importance in (torch.rand(3, 4, generator=generator), torch.randint(3, (3, 4), generator=generator).float()):
        each, left = divmod(keep, 3)
        expected = torch.zeros(3, 4, dtype=torch.bool)
        following = []
        for i, row in enumerate(importance.tolist()):
            columns = sorted(range(4), key=lambda j, row=row: (-row[j], j))
            expected[i, columns[:each]] = True
            following += [(-row[columns[each]], i, columns[each])] if left else []
        for _, i, j in sorted(following)[:left]:
            expected[i, j] = True
        assert torch.equal(row_mask(importance, keep), expected)
        assert int(expected.sum()) == keep


def test_ties_go_to_the_lower_index() -> None:
    ones = torch.ones(4, 5)
    mask = row_mask(ones, 6)
    assert mask.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [3, 0]]
    both = masks_by_row({"a": ones, "b": ones}, 0.7, {"a"})
    assert both["a"].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [3, 0]]
    assert both["b"].nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 0]]


def test_it_needs_text_and_knows_its_scopes(find, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wanda needs text; give --corpus"):
        find(corpus=None)
    with pytest.raises(UserError, match="--scope rows is not one of matrix, row"):
        find(scope="rows")
    with pytest.raises(UserError, match="--scope is for wanda, not omp"):
        train(method="omp", model="none", output=tmp_path / "omp", scope="row")
    assert not (tmp_path / "run").exists()


def test_the_folder_knows_how_it_was_found(find, tmp_path: Path) -> None:
    find(scope="row", steps=5)
    (row,) = finished_results(tmp_path / "run", {"method": "wanda", "scope": "row"}) or []
    assert row["method"] == "wanda"
    assert row["kd_loss"] > 0
    with pytest.raises(UserError, match="was started with scope = 'row', not None"):
        finished_results(tmp_path / "run", {"scope": None})
