"""``python -m benchmarks shrunk``, on a tiny model, and what its table says."""

import csv

import pytest

from benchmarks.__main__ import main
from benchmarks.shrunk import STRUCTURES, table


def test_the_benchmark_runs(tmp_path):
    pytest.importorskip("transformers")
    assert main(["shrunk", "--quick", "--rounds", "1", "--tokens", "4", "--output", str(tmp_path)]) == 0
    with (tmp_path / "shrunk.csv").open(encoding="utf-8") as lines:
        rows = {row["structure"]: row for row in csv.DictReader(lines)}
    assert rows.keys() == {"dense", *STRUCTURES}
    assert int(rows["ffn:0.5"]["parameters"]) < int(rows["dense"]["parameters"])
    assert "A quick run: no figures." in (tmp_path / "shrunk.md").read_text(encoding="utf-8")


def test_the_table_says_whether_the_target_is_met():
    sizes = {"dense": 2_000_000, "ffn:0.5": 1_000_000}
    assert "| 0.65              | 0.70    | yes |" in table({"dense": 100.0, "ffn:0.5": 65.0}, sizes)
    assert "| 0.75              | 0.70    | no  |" in table({"dense": 100.0, "ffn:0.5": 75.0}, sizes)


def test_wrong_options(tmp_path, capsys):
    assert main(["shrunk", "--quick", "--rounds", "0", "--output", str(tmp_path)]) == 2
    assert "must be at least 1" in capsys.readouterr().err
