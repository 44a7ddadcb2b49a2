"""What a report tells apart: masks of searches that differ, although their folders or labels look the same."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from example_study import ExampleStudy

from tamt.masks.file import MaskInfo, save_masks
from tamt.report.figure import Figure, Missing
from tamt.report.figures import omp_and_random
from tamt.report.masks import compare_masks, mask_figures
from tamt.report.read import read_results
from tamt.report.report import report
from tamt.report.results import Results
from tamt.report.scores import Scores
from tamt.report.statistics import Summary
from tamt.report.tables import differences_table, scores_table

MODEL = "bert-base-uncased"


@pytest.fixture
def study(tmp_path: Path) -> ExampleStudy:
    return ExampleStudy(tmp_path / "study")


def scored(study: ExampleStudy, mask: tuple[str, dict] | None, score: float, seed: int = 0, **settings: Any) -> None:
    """A fine-tuning on SST-2, or another task, with this score."""
    task = settings.pop("task", "sst2")
    file = study.finetune(MODEL, task, mask, seed, **settings) / "results.json"
    content = json.loads(file.read_text())
    content["results"][0]["score"] = score
    file.write_text(json.dumps(content))


def means(found: Results) -> dict[str, tuple[float, int]]:
    """By method, the mean score × 100 and the number of runs."""
    cells = {str(row[2]): row[4] for row in scores_table(found).rows}
    return {name: (round(cell.mean, 1), cell.runs) for name, cell in cells.items() if isinstance(cell, Summary)}


@pytest.mark.parametrize("other", [{"dense_embedding": True}, {"prune_pooler": True}])
def test_masks_of_other_matrices(study: ExampleStudy, other: dict) -> None:
    for seed, (settings, score) in enumerate([({}, 0.5), ({next(iter(other)): False}, 0.5), (other, 0.9)]):
        scored(study, study.search(MODEL, "tamt-kd", 0.7, seed, **settings)[0], score)
    found = read_results(study.folder)
    assert means(found) == {"TAMT-KD": (50.0, 2)}
    assert any(f"has {next(iter(other))} True" in item.why for item in found.skipped)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("runs/imp-70", "runs/wanda-70"),
        ("hub:me/a", "hub:me/b"),
        ("/x/imp-0/masks/sparsity-0.7.safetensors", "/x/imp-1/masks/sparsity-0.7.safetensors"),
        ("/x/kd/masks/step-50.safetensors", "/x/kd/masks/step-100.safetensors"),
        ("/x/kd/mask.safetensors", "/y/kd/mask.safetensors"),
    ],
)
def test_searches_that_start_from_other_masks(study: ExampleStudy, first: str, second: str) -> None:
    for seed, (initial, score) in enumerate([(first, 0.5), (second, 0.9)]):
        mask = study.search(MODEL, "tamt-kd", 0.7, seed, initial=initial, scores="two-valued")[0]
        scored(study, mask, score)
    assert all(runs == 1 for _, runs in means(read_results(study.folder)).values())


def test_the_mask_that_scores_give_anyway_is_the_same_start(study: ExampleStudy) -> None:
    starts: list[dict] = [{"scores": "activation", "initial": None}, {"scores": "activation", "initial": "omp"}]
    starts += [{"scores": "magnitude", "initial": None}, {"scores": "magnitude", "initial": "omp"}]
    for seed, settings in enumerate(starts):
        study.search(MODEL, "tamt-kd", 0.7, seed, **settings)
    found = read_results(study.folder)
    assert {ticket.seed: ticket.variant for ticket in found.tickets} == {
        0: "activation scores",
        1: "from OMP, activation scores",
        2: "magnitude scores",
        3: "magnitude scores",
    }
    assert not found.skipped


def test_the_default_order_of_dropping_written_out_is_the_default(study: ExampleStudy) -> None:
    for settings in ({}, {"drop": "last"}):
        study.search(MODEL, "omp", 0.5, steps=len(settings) + 1, structure="layers:0.5", **settings)
    assert {ticket.variant for ticket in read_results(study.folder).tickets} == {"layers:0.5"}


def test_searches_of_one_name_in_two_studies(tmp_path: Path) -> None:
    for name, batch, score in (("one", 8, 0.5), ("two", 16, 0.9)):
        study = ExampleStudy(tmp_path / "top" / name)
        masks = [
            study.search(MODEL, "tamt-kd", 0.7, seed, batch_size=batch)[0] for seed in range(2 if batch == 8 else 1)
        ]
        for seed, mask in enumerate(masks):
            scored(study, mask, score, seed + batch)
    moved = (tmp_path / "top").rename(tmp_path / "moved")
    found = read_results(moved)
    assert means(found) == {"TAMT-KD": (50.0, 2)}
    assert sorted(item.run.split("/")[0] for item in found.skipped) == ["two", "two"]


def two_of_one_kind(tmp_path: Path) -> tuple[ExampleStudy, ExampleStudy]:
    """Two studies with the same search and another mask, as their text differs, each fine-tuned once."""
    studies = ExampleStudy(tmp_path / "top/a"), ExampleStudy(tmp_path / "top/b")
    studies[1].weights = {MODEL: {name: weight.flip(0) for name, weight in studies[0].weights[MODEL].items()}}
    for number, study in enumerate(studies):
        scored(study, study.search(MODEL, "tamt-kd", 0.7)[0], 0.5 + 0.2 * number, number)
    return studies


def test_a_search_with_the_settings_of_another_and_another_mask_is_left_out(tmp_path: Path) -> None:
    _, other = two_of_one_kind(tmp_path)
    found = read_results(tmp_path / "top")
    assert means(found) == {"TAMT-KD": (50.0, 1)}
    assert {item.run.split("/")[1] for item in found.skipped} == {"search", "finetune"}
    reasons = {item.run.split("/")[1]: item.why for item in found.skipped}
    assert reasons["search"].startswith("has the settings of a/search/")
    assert "is left out, replaced, or of another model or search" in reasons["finetune"]
    assert [curve.ticket.run.split("/")[0] for curve in found.curves] == ["a"]
    (mask,) = other.folder.glob("search/*/mask.safetensors")
    mask.unlink()  # then nothing says that it was another one
    assert means(read_results(tmp_path / "top")) == {"TAMT-KD": (60.0, 2)}


def test_a_fine_tuning_is_not_credited_to_a_search_that_made_another_mask(tmp_path: Path) -> None:
    _, other = two_of_one_kind(tmp_path)
    shutil.rmtree(other.folder / "search")
    found = read_results(tmp_path / "top")
    assert means(found) == {"TAMT-KD": (50.0, 1)}
    assert [item.run.split("/")[0] for item in found.skipped] == ["b"]


def test_masks_of_one_name_without_their_searches_are_apart(tmp_path: Path) -> None:
    study = ExampleStudy(tmp_path / "study")
    row = {"method": "tamt-kd", "sparsity": 0.7, "seed": 0, "step": 200, "quality": 0.5}
    for seed, digest in enumerate(("a", "b", "a", None)):
        scored(study, ("runs/kd/mask.safetensors", {**row, "digest": digest}), 0.5, seed)
    found = read_results(study.folder)
    assert [ticket.digest for ticket in found.tickets] == ["a", "b"]
    assert {item.seed: item.ticket.digest for item in found.fine_tunings if item.ticket} == {
        0: "a",
        1: "b",
        2: "a",
        3: "a",
    }
    (skipped,) = found.skipped
    assert "another mask than runs before it that name runs/kd/mask.safetensors too" in skipped.why


def test_masks_without_their_searches_share_one_rate(study: ExampleStudy) -> None:
    for seed, scores in enumerate(((0.6, 0.5), (0.5, 0.6))):
        row = {"method": "tamt-kd", "sparsity": 0.7, "seed": seed, "step": 200, "quality": 0.5}
        for rate, score in zip((1e-4, 3e-4), scores, strict=True):
            scored(study, (f"/else/kd-{seed}/mask.safetensors", row), score, lr=rate)
    found = read_results(study.folder)
    assert len({item.lr for item in found.fine_tunings}) == 1
    assert means(found) == {"TAMT-KD, unknown search": (55.0, 2)}


def evaluated(study: ExampleStudy, text: str, kd_loss: float) -> None:
    """A search on dev text of its own, and the losses of a mask on the way and of the full model, by evaluations."""
    study.search(MODEL, "tamt-kd", 0.7, 0, save_at=(100,), dev_corpus=[text])
    (folder,) = study.folder.glob("search/*")
    (folder / "metrics.jsonl").unlink()
    mask = str(folder / "masks/step-100.safetensors")
    config = {"model": MODEL, "corpus": [text], "max_length": 128}
    row = {"model": MODEL, "method": "tamt-kd", "sparsity": 0.7, "mask_seed": 0, "mask_step": 100, "mask": mask}
    study.write("evaluate/mask", {**config, "mask": mask}, [{**row, "kd_loss": kd_loss}])
    study.write("evaluate/full", config, [{"model": MODEL, "mlm_loss": 10 * kd_loss}])


def test_losses_on_other_text(tmp_path: Path) -> None:
    evaluated(ExampleStudy(tmp_path / "top/one"), "one.txt", 0.2)
    evaluated(ExampleStudy(tmp_path / "top/two"), "two.txt", 0.9)
    found = read_results(tmp_path / "top")
    assert [ticket.kd_loss for ticket in found.tickets if ticket.step == 100] == [0.2]
    assert found.full_losses == {MODEL: {"mlm_loss": 2.0}}
    assert {item.run for item in found.skipped if "was measured on other text (two.txt 128)" in item.why} == {
        "two/evaluate/mask",
        "two/evaluate/full",
    }


def test_two_studies_that_share_a_search_and_its_evaluation(tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluated(ExampleStudy(tmp_path / "top" / name), "same.txt", 0.2)
    found = read_results(tmp_path / "top")
    assert [ticket.kd_loss for ticket in found.tickets if ticket.step == 100] == [0.2]


def test_all_tasks_are_those_that_both_methods_have(study: ExampleStudy) -> None:
    omp, kd = study.search(MODEL, "omp", 0.7)[0], study.search(MODEL, "tamt-kd", 0.7)[0]
    for seed in range(5):
        for mask, score in ((None, 0.9), (omp, 0.7), (kd, 0.8)):
            scored(study, mask, score, seed)
        scored(study, omp, 0.5, seed, task="cola")
    assert {row[2] for row in differences_table(read_results(study.folder)).rows} == {"sst2"}


def test_the_gap_to_random_masks_is_that_of_plain_omp(study: ExampleStudy) -> None:
    for sparsity, omp, random in ((0.5, 0.9, 0.7), (0.7, 0.8, 0.6)):
        scored(study, study.search(MODEL, "omp", sparsity)[0], omp)
        scored(study, study.search(MODEL, "rand", sparsity)[0], random)
    scored(study, study.search(MODEL, "omp", 0.5, 1, pattern="2:4")[0], 0.75)
    found = read_results(study.folder)
    figure = omp_and_random(found, MODEL, Scores(found, MODEL))
    assert isinstance(figure, Figure)
    (gap,) = [series for series in figure.panels[0].series if series.style == "gap"]
    assert [(point.x, point.y) for point in gap.points] == [(50, pytest.approx(20)), (70, pytest.approx(20))]


def test_masks_with_a_pattern_are_compared_with_the_omp_of_that_pattern(study: ExampleStudy) -> None:
    searches = {
        (method, pattern): study.search(MODEL, method, 0.5, number, steps=10 + number, pattern=pattern)[0][0]
        for number, (method, pattern) in enumerate(product(("omp", "wanda"), (None, "2:4")))
    }
    for (method, pattern), file in searches.items():  # OMP keeps the first half of each matrix, or of each four
        keep = torch.tensor([True, True, False, False]).repeat(4)
        keep = keep if pattern else keep.sort(descending=True).values
        info = MaskInfo(MODEL, method, 0.5, 0, 0, pattern=pattern)
        save_masks(Path(file), {"w": keep.roll(1 if method == "wanda" else 0)[None]}, info)
    (group,) = compare_masks(read_results(study.folder))
    far = {(ticket.method, ticket.variant): distance for ticket, distance in group.distances}
    assert far == {
        ("omp", None): 0,
        ("omp", "2:4"): 0,
        ("wanda", None): pytest.approx(1 - 7 / 9),
        ("wanda", "2:4"): pytest.approx(1 - 4 / 12),
    }


def test_masks_of_two_structures_are_compared_each_with_the_omp_of_its_own(study: ExampleStudy) -> None:
    sizes = {"ffn:0.5": {"ffn.0": 8, "ffn.1": 8}, "layers:0.5": {"layers": 4}}
    for number, (structure, shapes) in enumerate(sizes.items()):
        for method in ("omp", "wanda"):
            search = study.search(MODEL, method, 0.5, steps=number + 1, structure=structure)
            masks = {name: torch.arange(size) < size // 2 for name, size in shapes.items()}
            masks = {name: mask.roll(int(method == "wanda")) for name, mask in masks.items()}
            save_masks(Path(search[0][0]), masks, MaskInfo(MODEL, method, 0.5, 0, 0, structure=structure))
    found = read_results(study.folder)
    groups = compare_masks(found)
    assert found.skipped == []
    assert [group.labels for group in groups] == [[f"OMP, {s}", f"Wanda, {s} 0"] for s in sizes]
    far = {(ticket.method, ticket.variant): far for group in groups for ticket, far in group.distances}
    assert far == {
        ("omp", "ffn:0.5"): 0,
        ("wanda", "ffn:0.5"): pytest.approx(1 - 3 / 5),
        ("omp", "layers:0.5"): 0,
        ("wanda", "layers:0.5"): pytest.approx(1 - 1 / 3),
    }
    (figure, *_) = mask_figures(found, groups)
    assert isinstance(figure, Figure)
    assert [panel.title for panel in figure.panels] == ["50 % sparsity, ffn:0.5", "50 % sparsity, layers:0.5"]


def test_two_kinds_of_omp_are_not_omp_and_random(study: ExampleStudy) -> None:
    scored(study, study.search(MODEL, "omp", 0.5)[0], 0.9)
    scored(study, study.search(MODEL, "omp", 0.5, 1, pattern="2:4")[0], 0.8)
    found = read_results(study.folder)
    assert isinstance(omp_and_random(found, MODEL, Scores(found, MODEL)), Missing)


def test_a_share_without_an_upper_bound_is_written(study: ExampleStudy, tmp_path: Path) -> None:
    omp, kd = study.search(MODEL, "omp", 0.2)[0], study.search(MODEL, "tamt-kd", 0.2)[0]
    for mask, scores in ((omp, (0.919, 0.922, 0.916)), (kd, (0.920, 0.921, 0.922)), (None, (0.921, 0.920, 0.919))):
        for seed, score in enumerate(scores):
            scored(study, mask, score, seed)
    report(study.folder, output=tmp_path / "report")
    assert "| ∞ |" in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_imp_to_a_pattern_has_other_patterns_on_the_way(study: ExampleStudy) -> None:
    study.search(MODEL, "imp", 0.5, pattern="2:4")
    (folder,) = study.folder.glob("search/*")
    content = json.loads((folder / "results.json").read_text())
    (last,) = content["results"]
    content["results"] = [{**last, "sparsity": 0.25, "step": 100, "mask": "masks/pattern-3-4.safetensors"}, last]
    (folder / "results.json").write_text(json.dumps(content))
    assert [ticket.sparsity for ticket in read_results(study.folder).tickets] == [0.5]
