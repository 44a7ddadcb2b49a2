"""The table of fine-tunings runs through, goes on where it stopped, and holds what it says."""

import csv
from pathlib import Path

import pytest

from benchmarks import finetune_table
from benchmarks.finetune_table import main


def test_a_table_of_the_full_model_and_a_subnetwork(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"the {('old', 'new')[i % 2]} cat\t{i % 2}\n" for i in range(16))
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "glue" / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + rows, "utf-8")
    monkeypatch.setattr(finetune_table, "MODEL", str(tiny_bert))
    monkeypatch.setattr(finetune_table, "COMMON", {**finetune_table.COMMON, "model": str(tiny_bert)})
    settings = {"folder": "glue", "epochs": 1, "max_length": 16, "train_samples": 8, "batch_size": 4}
    monkeypatch.setattr(finetune_table, "TASKS", {"sst2": settings, "rte": {}})
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--tasks", "sst2", "--seeds", "0", "1"]
    main([*words, "--subnetworks", "full"])
    before = (tmp_path / "out" / "finetune.csv").read_text("utf-8").splitlines()
    main([*words, "--subnetworks", "full", "omp-70", "--results", str(tmp_path / "results")])
    written = (tmp_path / "results" / "finetune.csv").read_text("utf-8").splitlines()
    assert written[:3] == before, "what was finished is not done again"
    rows_written = list(csv.DictReader(written))
    assert [(row["subnetwork"], row["seed"]) for row in rows_written] == [
        (name, seed) for name in ("full", "omp-70") for seed in "01"
    ]
    assert all(row["epochs"] == "1" and row["torch"] and row["cpu"] for row in rows_written)
    table = (tmp_path / "results" / "finetune.md").read_text("utf-8").splitlines()
    assert table[0].split() == ["|", "subnetwork", "|", "sst2", "|", "rte", "|"]
    assert "accuracy 0." in table[2]
    assert "of 2 seeds" in table[3]
    assert table[4].split() == ["|", "tamt-kd-70", "|", "–", "|", "–", "|"]
