"""A study on a local Ray of two workers."""

import os
from pathlib import Path

import pytest
import small_studies

from tamt.cli import main

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tamt[ray]'")


@pytest.fixture
def study(tmp_path: Path, tiny_bert: Path, corpus: Path) -> Path:
    return small_studies.searches(tmp_path, tiny_bert, corpus)


def test_two_workers_do_what_one_process_does(study: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert main(["sweep", str(study), "--output", str(tmp_path / "ray"), "--engine", "ray", "--cores", "3"]) == 2
        assert "--cores 3 is more than the 2 cores of the Ray cluster" in capsys.readouterr().err
        assert main(["sweep", str(study), "--output", str(tmp_path / "ray"), "--engine", "ray"]) == 0
    finally:
        ray.shutdown()
    workers = small_studies.workers(tmp_path / "ray")
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert main(["sweep", str(study), "--output", str(tmp_path / "here")]) == 0
    assert small_studies.table(tmp_path / "ray") == small_studies.table(tmp_path / "here")
