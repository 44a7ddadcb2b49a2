"""The demo, end to end with a tiny model in place of the real one."""

import json
from pathlib import Path

import pytest
import torch

from tamt.cli import main
from tamt.data import assets as demo
from tamt.data import glue
from tamt.demo import LABELS, SEARCH


@pytest.fixture(autouse=True)
def _tiny(tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (60,), generator=generator).tolist()
    asked = {0: "number", 1: "human"}
    rows = ["sentence\tlabel"]
    rows += [f"the {'big' if label else 'small'} cat sees a dog\t{asked[label]}" for label in labels]
    (tmp_path / "questions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.setattr(demo, "model_folder", lambda name: tiny_bert)
    monkeypatch.setattr(demo, "corpus_files", lambda: (corpus, corpus))
    monkeypatch.setattr(demo, "questions_file", lambda: tmp_path / "questions.tsv")
    monkeypatch.setattr(glue, "DEMO_DEV_ROWS", 20)
    monkeypatch.setattr("tamt.demo.SEARCH", {**SEARCH, "max_length": 16})


def run(folder: Path, *options: str) -> int:
    words = ["--steps", "30", "--train-samples", "32", "--seeds", "0,1", "--output", str(folder)]
    return main(["demo", *words, *options])


def test_results_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "demo"
    assert run(folder, "--json") == 0
    printed = capsys.readouterr()
    assert "no run to resume" not in printed.err, "nobody asked for one"
    results = json.loads(printed.out)
    assert results == json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in results["results"]}
    assert list(rows) == list(LABELS)
    for row in rows.values():
        assert {"method", "sparsity", "kd_loss", "score", "seconds"} <= row.keys()
        assert row["score"] == pytest.approx(sum(row["scores"]) / 2)
    assert rows["full"]["sparsity"] == rows["full"]["kd_loss"] == 0
    assert rows["omp"]["sparsity"] == pytest.approx(0.7, abs=0.002)
    assert rows["rand"]["kd_loss"] > rows["omp"]["kd_loss"] > rows["tamt-kd"]["kd_loss"]
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*.bin")) + list(folder.glob("finetune/*/model"))


def test_what_is_finished_is_not_done_again(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "demo"
    assert run(folder) == 0
    before = (folder / "results.json").read_bytes()
    monkeypatch.setattr("tamt.search.train.train", lambda **_: pytest.fail("searched again"))
    monkeypatch.setattr("tamt.finetuning.finetune.finetune", lambda **_: pytest.fail("fine-tuned again"))
    assert run(folder) == 0
    assert (folder / "results.json").read_bytes() == before
    capsys.readouterr()
    assert main(["demo", "--steps", "31", "--output", str(folder)]) == 2
    assert "started with steps = 30, not 31" in capsys.readouterr().err
    assert (folder / "results.json").read_bytes() == before


def test_one_seed_has_no_spread(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "demo", "--seeds", "4") == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [row["score_std"] for row in results] == [None] * len(LABELS)
    assert "score_std" not in capsys.readouterr().out, "nobody has one"


def test_a_folder_that_holds_something_else_is_left_as_it_is(tmp_path: Path, capsys) -> None:
    (tmp_path / "results.json").write_text("mine")
    assert run(tmp_path) == run(tmp_path / "results.json") == 2
    assert "contains other files than a demo" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == "mine"
    assert not (tmp_path / "omp").exists()


def test_impossible_sizes_are_refused(tmp_path: Path, capsys) -> None:
    assert run(tmp_path / "demo", "--steps", "0") == 2
    assert "--steps 0 must be 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_seeds_are_those_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "demo", "--seeds", "4,2") == 0
    assert {path.name.rpartition("-")[2] for path in (tmp_path / "demo" / "finetune").iterdir()} == {"2", "4"}
    assert main(["demo", "--seeds", "1,1", "--output", str(tmp_path / "other")]) == 2
    assert "--seeds 1 is negative, over 32 bits or given twice" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
