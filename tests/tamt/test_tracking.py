"""Trackers: the metrics of a run in TensorBoard or another of accelerate's, and one log however often it is resumed."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tamt.cli import main
from tamt.runtime import choices, processes
from tamt.runtime.errors import UserError
from tamt.training.run_folder import RunFolder

STAND_INS = {
    "wandb": """
class Run:
    def __init__(self, **how): self.id = how.get("id") or "run-1"; record("init", **how)
    config = type("Config", (), {"update": lambda self, values, **_: record("config", **values)})()
    def log(self, values, step=None, **_): record("log", step=step, **values)
    def finish(self): record("finish")
def init(**how):
    global config
    print("noise on stdout")
    run = Run(**how)
    config = run.config
    return run
""",
    "trackio": """
class Run:
    def __init__(self, **how): self.name = how["name"]; record("init", **how)
    def log(self, values, **_): record("log", **values)
    def finish(self): record("finish")
class config:
    @staticmethod
    def update(values, **_): record("config", **values)
def init(**how): return Run(**how)
""",
    "mlflow": """
from types import SimpleNamespace
class utils:
    class validation: MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH = 500, 100
def search_experiments(**_): return []
def create_experiment(**_): return "0"
def start_run(run_id=None, **how):
    record("init", run_id=run_id)
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run-1"))
def log_params(values): record("config", **values)
def log_metrics(values, step=None): record("log", step=step, **values)
def end_run(): record("finish")
""",
}
"""Packages that write each call to `calls.jsonl`, as far as accelerate calls them."""
RECORD = """
import json, pathlib
def record(call, **values):
    with pathlib.Path(__file__).with_name("calls.jsonl").open("a") as file:
        file.write(json.dumps({"call": call, **values}) + "\\n")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a stand-in for a tracker's package; what it returns reads the calls."""

    def install(name: str):
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / f"{name}.py").write_text(RECORD + STAND_INS[name])
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        calls = folder / "calls.jsonl"
        return lambda: [json.loads(line) for line in calls.read_text().splitlines()]

    yield install
    for name in STAND_INS:
        sys.modules.pop(name, None)


def interrupted_run(path: Path, track: str) -> None:
    """Log steps 1 to 4 with a checkpoint after step 2, and resume: log steps 3 to 5."""
    with RunFolder(path, {"seed": 3, "corpus": ["text"]}, track=track) as folder:
        for step in range(1, 5):
            folder.log(step, loss=1 / step)
            if step == 2:
                folder.save_checkpoint(step, {})
    with RunFolder(path, {"seed": 3, "corpus": ["text"]}, resume=True, track=track) as folder:
        assert folder.resume(lambda state: None) == 2
        for step in range(3, 6):
            folder.log(step, loss=1 / step)


def test_tensorboard_shows_an_interrupted_run_as_one(tmp_path: Path) -> None:
    interrupted_run(tmp_path / "run", "auto")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert events.Scalars("loss")[3].value == 0.25
    assert not (tmp_path / "run" / "tracker.json").exists()


@pytest.mark.parametrize("name", STAND_INS)
def test_a_resumed_run_continues_its_log(name, stand_in, tmp_path: Path, capfd) -> None:
    calls = stand_in(name)
    interrupted_run(tmp_path / "study" / "run", name)
    assert [call["call"] for call in calls()] == [
        *("init", "config", *["log"] * 4, "finish"),
        *("init", *["log"] * 3, "finish"),
    ]
    first, again = (call for call in calls() if call["call"] == "init")
    key = {"wandb": "id", "trackio": "name", "mlflow": "run_id"}[name]
    assert again[key] == json.loads((tmp_path / "study" / "run" / "tracker.json").read_text())["id"]
    if name != "mlflow":
        assert (first["project"], first["name"]) == ("tamt", "study/run")
        assert again["resume"] == "allow"
        assert next(call for call in calls() if call["call"] == "config")["seed"] == 3
    assert [call["loss"] for call in calls() if call["call"] == "log"][-1] == 0.2
    assert capfd.readouterr().out == ""  # is for the results alone


def test_another_tracker_on_resume_gets_a_log_of_its_own(stand_in, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}, track="none") as folder:
        folder.log(1, loss=1.0)
    (tmp_path / "run" / "tracker.json").write_text('{"tracker": "mlflow", "id": "x"}')
    calls = stand_in("wandb")
    with RunFolder(tmp_path / "run", {}, resume=True, track="wandb"):
        pass
    assert calls()[0]["id"] is None


def test_a_tracker_that_fails_ends_alone(stand_in, tmp_path: Path, capfd, monkeypatch) -> None:
    stand_in("wandb")
    with RunFolder(tmp_path / "run", {}, track="wandb") as folder:
        folder.log(1, loss=1.0)
        monkeypatch.setattr("wandb.Run.log", lambda *_, **__: 1 / 0)
        folder.log(2, loss=0.5)
        folder.log(3, loss=0.25)
    assert capfd.readouterr().err.count("wandb failed (ZeroDivisionError: division by zero); the run continues") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_does_not_start_is_one_sentence(stand_in, tmp_path: Path, monkeypatch) -> None:
    stand_in("wandb")
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    with pytest.raises(UserError, match="--track wandb does not start .ZeroDivisionError"):
        RunFolder(tmp_path / "run", {}, track="wandb")


def test_only_the_first_process_logs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(processes, "first", lambda: False)
    with RunFolder(tmp_path / "run", {}, track="tensorboard") as folder:
        folder.log(1, loss=1.0)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_without_tensorboard_there_is_no_tracker_by_default(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    with RunFolder(tmp_path / "run", {}, track="auto") as folder:
        folder.log(1, loss=1.0)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl"}


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", "'tamt[tensorboard]'")])
@pytest.mark.parametrize("command", ["train --method omp", "finetune --task sst2"])
def test_a_tracker_that_is_not_installed_is_one_sentence(command, name, package, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    words = [*command.split(), "--model", "m", "--output", str(tmp_path / "run"), "--track", name]
    assert main(words) == 2
    sentence = f"--track {name} needs {name}, which is not installed; pip install {package} or leave it out"
    assert capsys.readouterr().err == f"tamt {words[0]}: error: {sentence}\n"
    assert not (tmp_path / "run").exists()
