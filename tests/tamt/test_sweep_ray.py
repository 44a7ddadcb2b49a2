"""A study on a local Ray of two workers."""

import csv
import os
from pathlib import Path

import pytest
import yaml

from tamt.cli import main

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tamt[ray]'")


@pytest.fixture
def study(tmp_path: Path, tiny_bert: Path, corpus: Path) -> Path:
    content = {
        "models": str(tiny_bert),
        "methods": ["tamt-kd", "omp"],
        "sparsities": [0.3, 0.5],
        "corpus": str(corpus),
        "dev_corpus": str(corpus),
        "search": {"max_length": 16, "batch_size": 2, "steps": 4, "save_at": [2], "eval_blocks": 2},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_two_workers_do_what_one_process_does(study: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert main(["sweep", str(study), "--output", str(tmp_path / "ray"), "--engine", "ray", "--cores", "3"]) == 2
        assert "--cores 3 is more than the 2 cores of the Ray cluster" in capsys.readouterr().err
        assert main(["sweep", str(study), "--output", str(tmp_path / "ray"), "--engine", "ray"]) == 0
    finally:
        ray.shutdown()
    events = (tmp_path / "ray").rglob("events.out.tfevents.*")
    workers = {int(path.name.split(".")[-2]) for path in events}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert main(["sweep", str(study), "--output", str(tmp_path / "here")]) == 0
    assert table(tmp_path / "ray") == table(tmp_path / "here")
