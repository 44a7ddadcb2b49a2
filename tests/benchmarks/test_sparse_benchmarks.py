"""``python -m benchmarks sparse``, on tiny matrices, and what its tables say."""

import csv

import pytest

from benchmarks.__main__ import main
from benchmarks.sparse.products import CSR, LINEAR, PREPACKED, SPARSE, Key, break_even, gain

TIMES = {
    Key("float32", 8, None, LINEAR): 6.0,
    Key("float32", 8, None, PREPACKED): 4.0,
    Key("float32", 8, 0.5, SPARSE): 5.0,
    Key("float32", 8, 0.9, SPARSE): 1.0,
    Key("float32", 8, 0.9, CSR): 8.0,
    Key("bfloat16", 8, None, LINEAR): 1.0,
}


def test_gains_are_over_the_best_dense_product():
    assert gain(TIMES, "float32", 8, 0.5) == 0.8
    assert gain(TIMES, "float32", 8, 0.9) == 4
    assert gain(TIMES, "float32", 8, 0.9, CSR) == 0.5
    assert break_even(TIMES, "float32", 8) == pytest.approx(0.6)


def test_the_benchmark_runs(tmp_path):
    pytest.importorskip("transformers")
    command = ["sparse", "--quick", "--tokens", "1,20", "--sparsities", ".5,.9", "--rounds", "1"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    with (tmp_path / "sparse.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["contender"] for row in rows} >= {SPARSE, CSR, LINEAR}
    page = (tmp_path / "sparse.md").read_text(encoding="utf-8")
    assert "slower" in page
    assert "A quick run: no figures." in page


@pytest.mark.parametrize("wrong", [["--tokens", "0"], ["--sparsities", ".5"], ["--sparsities", ".5,1"]])
def test_wrong_options(wrong, tmp_path, capsys):
    assert main(["sparse", "--quick", *wrong, "--output", str(tmp_path)]) == 2
    assert "must be" in capsys.readouterr().err
