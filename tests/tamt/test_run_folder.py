"""The folder of a run: what it says of its origin, and what a run killed in the middle leaves."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import set_seed

from tamt.runtime.errors import UserError
from tamt.training import run_folder
from tamt.training.checkpoint import DamagedCheckpointError, read_checkpoint, write_checkpoint
from tamt.training.generators import generator_states, restore_generators
from tamt.training.run_folder import RunFolder, version_of
from tamt.version import __version__


def test_config_is_yaml_and_says_which_version_wrote_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {"seed": 3, "output": tmp_path}):
        pass
    assert version_of(tmp_path / "run") == __version__
    config = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(config.read_text()) == {"seed": 3, "output": str(tmp_path)}
    config.write_text("seed: 3\n")
    assert version_of(tmp_path / "run") is None


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def resumed(run: Path) -> tuple[int, dict]:
    """The step that a run goes on from, and the state that it is given."""
    states: list[dict] = [{}]
    with RunFolder(run, {}, resume=True) as folder:
        return folder.resume(lambda state: states.append(dict(state))), states[-1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that logged five steps, saved the third and fourth, and was killed in the middle of a line."""
    with RunFolder(tmp_path / "run", {}) as folder:
        for step in range(1, 6):
            folder.log(step, loss=1 / step)
            if step in (3, 4):
                folder.save_checkpoint(step, {"weight": torch.full((3,), float(step))})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    return tmp_path / "run"


def test_a_run_goes_on_from_its_newest_checkpoint(run: Path) -> None:
    step, state = resumed(run)
    assert step == state["step"] == 4
    assert torch.equal(state["weight"], torch.full((3,), 4.0))


def test_lines_after_the_checkpoint_are_dropped_as_they_will_come_again(run: Path) -> None:
    with RunFolder(run, {}, resume=True) as folder:
        folder.log(5, loss=0.2)
    assert logged(run) == [{"step": step, "loss": 1 / step} for step in range(1, 6)]


def test_a_folder_that_holds_no_run_to_resume_is_told(tmp_path: Path, capsys) -> None:
    with RunFolder(tmp_path / "run", {}, resume=True):
        pass
    assert "run holds no run to resume, so a new one begins" in " ".join(capsys.readouterr().err.split())


def test_without_a_checkpoint_a_run_starts_again(run: Path) -> None:
    for path in checkpoints(run):
        path.unlink()
    with RunFolder(run, {}, resume=True) as folder:
        assert folder.resume(lambda state: pytest.fail("there is nothing to restore")) == 0
        folder.log(1, loss=7.0)
    assert logged(run) == [{"step": 1, "loss": 7.0}]


def test_a_resume_is_told_and_what_changes_no_result_may_change(run: Path) -> None:
    with RunFolder(run, {"log_every": 7, "no_cuda_graphs": True}, resume=True) as folder:
        assert folder.resume(lambda state: None) == 4
    assert logged(run)[-1] == {"step": 4, "resumed": True}


@pytest.mark.parametrize(
    ("former", "now"), [("old", "new"), ("old", "{here}/old"), ("{here}/old", "{here}/new"), ("a/b", "b")]
)
def test_a_run_that_was_moved_with_its_study_goes_on(former: str, now: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    former, now = (study.format(here=tmp_path) for study in (former, now))

    def settings(study: str) -> dict:
        mask = f"{study}/search/kd/mask.safetensors"
        own = {"mask": mask, "corpus": ["demo", f"{study}/text.txt"], "train_file": "rows.tsv"}
        return {"output": f"{study}/finetune/sst2", **own}

    with RunFolder(Path(former) / "finetune/sst2", settings(former)):
        pass
    Path(former).rename(now)
    with RunFolder(Path(now) / "finetune/sst2", settings(now), resume=True):
        pass
    for changed in ({"mask": f"{now}/other"}, {"train_file": f"{now}/rows.tsv"}):
        with pytest.raises(UserError, match=f"was started with {next(iter(changed))}"):
            RunFolder(Path(now) / "finetune/sst2", settings(now) | changed, resume=True)


@pytest.mark.parametrize(("former", "now"), [({"pattern": "2:4"}, {}), ({}, {"pattern": "2:4"})])
def test_a_resume_has_all_settings_and_no_other(former: dict, now: dict, tmp_path: Path) -> None:
    with RunFolder(tmp_path, {"seed": 0, **former}):
        pass
    with pytest.raises(UserError, match="was started with pattern = (None, not '2:4'|'2:4', not None)"):
        RunFolder(tmp_path, {"seed": 0, **now}, resume=True)


def test_time_before_the_checkpoint_counts(run: Path) -> None:
    with RunFolder(run, {}, resume=True) as folder:
        first = folder.seconds
        assert first > 0
        folder.save_checkpoint(5, {})
    with RunFolder(run, {}, resume=True) as folder:
        assert folder.seconds > first


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}, keep=3) as folder:
        for step in (8, 9, 10, 11):
            folder.save_checkpoint(step, {})
        assert {path.name for path in checkpoints(tmp_path)} == {f"step-{step}.checkpoint" for step in (9, 10, 11)}
        folder.finish({"results": []})
    assert not (tmp_path / "checkpoints").exists()


DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped bit": lambda content: content[:-300] + bytes([content[-300] ^ 4]) + content[-299:],
    "another file": lambda content: b"PK" + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_on_the_one_before_and_says_so(run: Path, damage: str, capsys) -> None:
    before, newest = checkpoints(run)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    step, state = resumed(run)
    assert step == 3
    assert torch.equal(state["weight"], torch.full((3,), 3.0))
    said = capsys.readouterr().err
    assert f"{newest} cannot be read" in said
    assert "continues from the one of step 3" in said
    assert [line["step"] for line in logged(run) if "resumed" not in line] == [1, 2, 3]
    # The damaged one does not count as one of those that are kept.
    with RunFolder(run, {}, resume=True) as folder:
        folder.save_checkpoint(3, {})
        folder.save_checkpoint(4, {})
    assert [path.name for path in checkpoints(run)] == ["step-3.checkpoint", "step-4.checkpoint"]
    assert resumed(run)[0] == 4


def test_where_all_checkpoints_are_damaged_they_are_named_and_nothing_is_lost(run: Path) -> None:
    for path in checkpoints(run):
        path.write_bytes(b"half")
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(DamagedCheckpointError, match=r"step-4.*cannot be read.*step-3.*start the run anew") as raised:
        RunFolder(run, {}, resume=True)
    assert str(raised.value).count("\n") == 0
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_start_that_failed_leaves_no_lock(run: Path) -> None:
    content = {path: path.read_bytes() for path in checkpoints(run)}
    for path in content:
        path.write_bytes(b"half")
    with pytest.raises(DamagedCheckpointError) as raised:  # which refers to the folder, as a notebook's traceback does
        RunFolder(run, {}, resume=True)
    for path, checkpoint in content.items():
        path.write_bytes(checkpoint)
    assert resumed(run)[0] == 4
    assert raised.traceback


def test_of_two_starts_at_once_the_second_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = run_folder.write_config

    def write_while_another_starts(path: Path, settings: Mapping[str, Any]) -> None:
        monkeypatch.setattr(run_folder, "write_config", write)
        with pytest.raises(UserError, match="another run is at work"):
            RunFolder(path, {"seed": 2})
        write(path, settings)

    monkeypatch.setattr(run_folder, "write_config", write_while_another_starts)
    with RunFolder(tmp_path / "run", {"seed": 1}):
        pass
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"seed": 1}


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_was_killed_before_it_wrote_its_settings_is_made_again(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / ".config.yaml.17.tmp").write_text("see")
    with RunFolder(tmp_path, {"seed": 1}, resume=resume) as folder:
        folder.log(1, loss=0.5)
    assert logged(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        (False, "is not empty and nothing in it is overwritten; give a new --output, or --resume"),
        (True, "is not empty and has no config.yaml of a run to resume; give the folder of the interrupted run"),
    ],
)
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, resume: bool, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(UserError, match=message):
        RunFolder(tmp_path, {}, resume=resume)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("metrics.jsonl", "mine")]


def test_a_checkpoint_of_another_kind_of_run_is_told(run: Path) -> None:
    def restore(state: Mapping[str, Any]) -> None:
        torch.zeros(4).copy_(state["weight"])

    with (
        RunFolder(run, {}, resume=True) as folder,
        pytest.raises(DamagedCheckpointError, match="step 4 in .* does not fit the run"),
    ):
        folder.resume(restore)


def test_a_run_that_is_at_work_is_left_alone(run: Path) -> None:
    with RunFolder(run, {}, resume=True) as folder:
        folder.log(5, loss=0.2)
        half_written = run / "checkpoints" / ".step-5.checkpoint.17.tmp"
        half_written.touch()
        with pytest.raises(UserError, match=f"another run is at work in {run}; wait for it, or stop it"):
            RunFolder(run, {}, resume=True)
        assert half_written.exists()
        folder.log(6, loss=0.1)
    assert [line["step"] for line in logged(run) if "resumed" not in line] == [1, 2, 3, 4, 5, 6]
    assert resumed(run)[0] == 4


def test_a_checkpoint_right_after_the_start_knows_which_lines_come_after_it(run: Path) -> None:
    with RunFolder(run, {}, resume=True) as folder:
        folder.save_checkpoint(5, {})
        folder.log(6, loss=0.1)
    assert resumed(run)[0] == 5
    assert [line["step"] for line in logged(run) if "resumed" not in line] == [1, 2, 3, 4]


def test_what_a_killed_save_left_is_removed(run: Path) -> None:
    leftovers = [run / ".config.yaml.17.tmp", run / "checkpoints" / ".step-5.checkpoint.17.tmp"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    assert resumed(run)[0] == 4
    assert not any(leftover.exists() for leftover in leftovers)


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple:
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()

    set_seed(3)
    draw()  # Gaussians come in pairs: of Python's and NumPy's a half is left over
    write_checkpoint(tmp_path / "state", {"generators": generator_states()})
    expected = draw()
    set_seed(4)
    restore_generators(read_checkpoint(tmp_path / "state")["generators"])
    assert draw() == expected
