"""The study for a GPU runs, here on a CPU with a tiny model, and stops in time."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import gpu_study


@pytest.fixture
def folder(tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What travels to the GPU, with one task of a few rows."""
    folder = tmp_path / "carried"
    shutil.copytree(tiny_bert, folder / "model")
    for name in gpu_study.TEXTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus, folder / name)
    (folder / "glue/CoLA").mkdir(parents=True)
    rows = "".join(f"gj04\t{i % 2}\t\tthe {('cat', 'dog')[i % 2]} sees\n" for i in range(24))
    for split in ("train", "dev"):
        (folder / "glue/CoLA" / f"{split}.tsv").write_text(rows)
    monkeypatch.setattr(gpu_study, "ROW_TOKENS", 16)
    monkeypatch.setattr(gpu_study, "TASKS", {"cola": {"data_dir": "glue/CoLA", "epochs": 1}})
    return folder


PART = gpu_study.Part(lengths=(1, 2), scores=("activation",))


def rows_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / gpu_study.RESULTS).read_text().splitlines()]


def test_every_search_and_fine_tuning_is_a_line(folder: Path, tmp_path: Path) -> None:
    gpu_study.run(folder, tmp_path / "out", PART, device="cpu", max_length=16, batch_size=2, eval_blocks=2)
    kinds = [next(iter(row)) for row in rows_of(tmp_path / "out")]
    assert kinds == ["machine", *["search"] * 4, *["fine_tuning"] * 2]
    scored = [row for row in rows_of(tmp_path / "out") if "fine_tuning" in row]
    assert all(row["lr_choice"].startswith("best of 2 rates") for row in scored)


def test_what_would_take_too_long_is_left_out(folder: Path, tmp_path: Path) -> None:
    gpu_study.run(folder, tmp_path / "out", PART, seconds=0, device="cpu")
    assert [row.get("left_out") for row in rows_of(tmp_path / "out")[1:]] == [
        "activation-1-0.7",
        "activation-1-0.9",
        "activation-2-0.7",
        "activation-2-0.9",
    ]


def test_missing_data_is_one_sentence(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("tamt.data.assets.model_folder", lambda name: tiny_bert)
    assert gpu_study.main(["prepare", str(tmp_path / "carried"), "--data", str(tmp_path)]) == 2
    assert "enwiki-sample.txt is missing; give the folder of the data with --data" in capsys.readouterr().err
