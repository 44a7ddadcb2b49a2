"""A study in several processes of this machine."""

import os
import signal
from pathlib import Path

import pytest
import small_studies

from tamt.cli import main
from tamt.sweep.plan import Run
from tamt.sweep.worker_processes import WorkerProcesses


@pytest.fixture
def study(tmp_path: Path, tiny_bert: Path, corpus: Path) -> Path:
    return small_studies.searches(tmp_path, tiny_bert, corpus)


def test_two_processes_do_what_one_does(study: Path, tmp_path: Path) -> None:
    several = ["--engine", "processes", "--workers", "2"]
    assert main(["sweep", str(study), "--output", str(tmp_path / "several"), *several]) == 0
    workers = small_studies.workers(tmp_path / "several")
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert main(["sweep", str(study), "--output", str(tmp_path / "here")]) == 0
    assert small_studies.table(tmp_path / "several") == small_studies.table(tmp_path / "here")


@pytest.mark.parametrize("option", ["--workers", "--cores"])
def test_options_of_processes_need_processes(option: str, study: Path, capsys) -> None:
    assert main(["sweep", str(study), option, "2"]) == 2
    assert capsys.readouterr().err.endswith("has no meaning with --engine here; add --engine processes\n")


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
