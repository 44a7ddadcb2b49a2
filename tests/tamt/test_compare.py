"""Comparing masks: hand-worked similarities on packed bits, distances from OMP, masks that do not belong together."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tamt.cli import main
from tamt.masks.file import MaskInfo, load_packed, pack_masks, save_masks
from tamt.masks.masking import magnitude_masks, prunable_weights, random_masks
from tamt.masks.similarity import similarity
from tamt.models.language_model import load_masked_language_model

INFO = MaskInfo(model="any", method="tamt-kd", sparsity=0.5, seed=0, step=0)


def packed(**rows: list[int]):
    return pack_masks({name: torch.tensor([row], dtype=torch.bool) for name, row in rows.items()}, INFO)


def write(path: Path, method: str = "tamt-kd", sparsity: float = 0.5, seed: int = 0, shape=(7, 9)) -> str:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 1 - sparsity
    save_masks(path, {"a.weight": mask}, MaskInfo("any", method, sparsity, seed, 0))
    return str(path)


def test_similarity_by_hand() -> None:
    a = packed(x=[1, 1, 0, 0], y=[0, 0])
    b = packed(x=[1, 0, 1, 0], y=[0, 0])
    assert similarity(a, b) == (1 / 3, {"x": 1 / 3, "y": 1.0})
    assert similarity(packed(y=[0, 0]), packed(y=[0, 0])) == (1.0, {"y": 1.0})


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9), (8, 8), (16, 24), (31, 33)])
def test_similarity_is_that_of_bool_tensors(shape) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(shape, generator=generator) < 0.4 for _ in range(2))
    overall, _ = similarity(pack_masks({"x": a}, INFO), pack_masks({"x": b}, INFO))
    assert overall == pytest.approx(int((a & b).sum()) / max(1, int((a | b).sum())) if (a | b).any() else 1.0)


def test_every_pair_of_several_masks(tmp_path: Path, capsys) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(4)]
    assert main(["compare", *paths, paths[0], "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert len(rows) == 10
    assert rows[3]["similarity"] == 1.0  # the first mask with itself
    assert rows[0]["distance"] == 1 - rows[0]["similarity"] > 0
    assert "first_omp_distance" not in rows[0]
    assert set(rows[0]["matrices"]["a.weight"]) == {"similarity", "first_sparsity", "second_sparsity"}
    assert main(["compare", *paths]) == 0
    assert "a.weight" not in capsys.readouterr().out  # a table a pair would bury the summary
    assert main(["compare", *paths[:2]]) == 0
    assert "a.weight" in capsys.readouterr().out


def test_distance_from_an_omp_mask_among_them(tmp_path: Path, capsys) -> None:
    paths = [write(tmp_path / "omp.safetensors", "omp"), write(tmp_path / "kd.safetensors", seed=1)]
    paths.append(write(tmp_path / "other.safetensors", sparsity=0.7, seed=2))
    assert main(["compare", *paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert rows[0]["first_omp_distance"] == 0
    assert rows[0]["second_omp_distance"] == rows[0]["distance"] > 0
    assert rows[1]["second_omp_distance"] is None  # OMP of another sparsity is no measure


def test_distance_from_the_omp_of_a_model(tmp_path: Path, capsys, tiny_bert: Path) -> None:
    weights = prunable_weights(load_masked_language_model(str(tiny_bert)).encoder)
    save_masks(tmp_path / "o.safetensors", magnitude_masks(weights, 0.7), MaskInfo("m", "mine", 0.7, 0, 0))
    save_masks(tmp_path / "r.safetensors", random_masks(weights, 0.6, 0), MaskInfo("m", "rand", 0.6, 0, 0))
    words = ["compare", str(tmp_path / "o.safetensors"), str(tmp_path / "r.safetensors"), "--model", str(tiny_bert)]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["first_omp_distance"] == 0
    overall, _ = similarity(load_packed(tmp_path / "r.safetensors"), pack_masks(magnitude_masks(weights, 0.6), INFO))
    assert row["second_omp_distance"] == 1 - overall


def test_distance_of_structured_masks_from_the_omp_of_a_model(tmp_path: Path, capsys, tiny_bert: Path) -> None:
    for method in ("omp", "rand"):
        words = ["--method", method, "--model", str(tiny_bert), "--structure", "ffn:0.5"]
        assert main(["train", *words, "--output", str(tmp_path / method)]) == 0
    capsys.readouterr()
    words = [str(tmp_path / method / "mask.safetensors") for method in ("omp", "rand")]
    assert main(["compare", *words, "--model", str(tiny_bert), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["first_omp_distance"] == 0 < row["second_omp_distance"] == row["distance"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys, tiny_bert: Path) -> None:
    one, other = write(tmp_path / "1.safetensors"), write(tmp_path / "2.safetensors", shape=(9, 7))
    for words, message in (
        ([one], "one mask cannot be compared"),
        ([one, other], "1.safetensors and"),
        ([one, one, "--model", str(tiny_bert)], "are for different models"),
        ([one, str(tmp_path / "none")], "no mask file"),
    ):
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_run_folders_are_named_whole_in_a_picture(tmp_path: Path) -> None:
    for name in ("kd-0.5", "kd-0.7"):
        write(tmp_path / name / "mask.safetensors")
    folders = [str(tmp_path / name) for name in ("kd-0.5", "kd-0.7")]
    assert main(["compare", *folders, "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "similarity.csv").open(newline="") as file:
        assert {row["series"] for row in csv.DictReader(file)} == {"kd-0.5", "kd-0.7"}


def test_pictures_and_tables(tmp_path: Path, capsys) -> None:
    paths = [write(tmp_path / f"run-{seed}" / "mask.safetensors", seed=seed) for seed in range(3)]
    assert main(["compare", *paths, "--output", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "similarity.png",
        "similarity.pdf",
        "similarity.csv",
        "matrices.csv",
    }
    with (tmp_path / "out" / "similarity.csv").open(newline="") as file:
        cells = {(row["series"], row["x"]): float(row["y mean"]) for row in csv.DictReader(file)}
    assert cells["run-0", "run-2"] == cells["run-2", "run-0"] == rows[1]["similarity"]
    assert cells["run-1", "run-1"] == 1
    with (tmp_path / "out" / "matrices.csv").open(newline="") as file:
        assert [float(row["similarity"]) for row in csv.DictReader(file)] == [row["similarity"] for row in rows]
    assert main(["compare", *paths, "--output", str(tmp_path / "out")]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
