"""The folder of a run: what it says of its origin, and what a run killed in the middle leaves."""

import json
from pathlib import Path

import pytest
import yaml

from tamt import __version__
from tamt.run_folder import DamagedCheckpointError, RunFolder, version_of


def test_config_is_yaml_and_says_which_version_wrote_it(tmp_path: Path) -> None:
    with RunFolder.start(tmp_path / "run", {"seed": 3, "output": tmp_path}):
        pass
    assert version_of(tmp_path / "run") == __version__
    config = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(config.read_text()) == {"seed": 3, "output": str(tmp_path)}
    config.write_text("seed: 3\n")
    assert version_of(tmp_path / "run") is None


def test_metrics_stay_readable_after_half_a_line(tmp_path: Path) -> None:
    with RunFolder.start(tmp_path, {}) as folder:
        folder.log(1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with RunFolder.start(tmp_path, {}, resume=True) as folder:
        folder.log(2, loss=0.5)
    first, last = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first) == {"step": 1, "loss": 1.0}
    assert json.loads(last) == {"step": 2, "loss": 0.5}


def test_a_damaged_checkpoint_has_its_own_error(tmp_path: Path) -> None:
    with RunFolder.start(tmp_path, {}) as folder:
        folder.save_checkpoint(1, {})
        (tmp_path / "checkpoint.pt").write_bytes(b"half")
        with pytest.raises(DamagedCheckpointError, match="checkpoint.pt cannot be read"):
            folder.load_checkpoint()
