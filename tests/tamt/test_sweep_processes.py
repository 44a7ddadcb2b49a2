"""A study in several processes of this machine."""

import csv
import os
import signal
from pathlib import Path

import pytest
import yaml

from tamt.cli import main
from tamt.sweep.plan import Run
from tamt.sweep.worker_processes import WorkerProcesses


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


def test_two_processes_do_what_one_does(study: Path, tmp_path: Path) -> None:
    several = ["--engine", "processes", "--workers", "2"]
    assert main(["sweep", str(study), "--output", str(tmp_path / "several"), *several]) == 0
    events = (tmp_path / "several").rglob("events.out.tfevents.*")
    workers = {int(path.name.split(".")[-2]) for path in events}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert main(["sweep", str(study), "--output", str(tmp_path / "here")]) == 0
    assert table(tmp_path / "several") == table(tmp_path / "here")


def test_more_cores_than_there_are_is_an_error(study: Path, tmp_path: Path, capsys) -> None:
    assert main(["sweep", str(study), "--output", str(tmp_path / "x"), "--engine", "processes", "--cores", "9999"]) == 2
    assert "--cores 9999 is more than the" in capsys.readouterr().err


def test_a_process_that_dies_loses_its_own_run_alone(tmp_path: Path) -> None:
    engine = WorkerProcesses(tmp_path, keep_models=False, cores=1, workers=2)
    # A command that takes no time, as its model is not there.
    nothing = {"model": str(tmp_path / "nowhere"), "method": "omp", "sparsity": 0.5}
    runs = [Run("search", name, nothing, {}) for name in ("first", "second", "third")]
    try:
        engine.start(runs[0])
        engine.start(runs[1])
        os.kill(engine._team[0].process.pid or 0, signal.SIGKILL)
        found = {attempt.run.name: attempt.error or "" for attempt in (engine.finished(), engine.finished())}
        assert found["first"] == "its process ended with exit code -9"
        assert "nowhere" in found["second"]
        engine.start(runs[2])
        assert "nowhere" in (engine.finished().error or "")
    finally:
        engine.close()
