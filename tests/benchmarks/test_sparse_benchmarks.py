"""``python -m benchmarks sparse``, on tiny matrices, and what its tables say."""

import csv
import os

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.sparse import instructions, products, targets
from benchmarks.sparse.products import (
    CSR,
    HUGGING_FACE,
    LINEAR,
    OFF,
    ONNX,
    PREPACKED,
    SPARSE,
    Key,
    break_even,
    gain,
    onnx_linear,
)
from tamt.runtime.errors import UserError

TIMES = {
    Key("float32", 8, None, LINEAR): 6.0,
    Key("float32", 8, None, PREPACKED): 4.0,
    Key("float32", 8, 0.5, SPARSE): 5.0,
    Key("float32", 8, 0.9, SPARSE): 1.0,
    Key("float32", 8, 0.9, CSR): 8.0,
    Key("bfloat16", 8, None, LINEAR): 1.0,
}


def test_onnx_runtime_computes_the_same_product():
    x, weight, bias = torch.randn(3, 20), torch.randn(8, 20), torch.randn(8)
    (product,) = onnx_linear(weight, bias)(x)
    torch.testing.assert_close(torch.as_tensor(product), torch.nn.functional.linear(x, weight, bias))


def test_gains_are_over_the_best_dense_product():
    assert gain(TIMES, "float32", 8, 0.5) == 0.8
    assert gain(TIMES, "float32", 8, 0.9) == 4
    assert gain(TIMES, "float32", 8, 0.9, CSR) == 0.5
    assert break_even(TIMES, "float32", 8) == pytest.approx(0.6)


def test_the_benchmark_runs(tmp_path):
    pytest.importorskip("transformers")
    command = ["sparse", "--quick", "--tokens", "1,20", "--sparsities", ".5,.9", "--rounds", "1", "--threads", "1,2"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    with (tmp_path / "sparse.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["contender"] for row in rows} >= {SPARSE, CSR, LINEAR, ONNX}
    assert {row["threads"] for row in rows} == {"1", "2"}
    assert len({row["instructions"] for row in rows}) == 1
    page = (tmp_path / "sparse.md").read_text(encoding="utf-8")
    assert "slower" in page
    assert ", threads 1 and 2, " in page.splitlines()[0]
    assert "BERT-base, 2 threads" in page
    assert "a step of fine-tuning BERT-base, 1 thread " in page
    assert "A quick run: no figures." in page


def test_a_step_is_held_to_the_best_dense_one():
    times = {Key("float32", 2048, None, HUGGING_FACE): 9.0, Key("float32", 2048, None, OFF): 8.0}
    times |= {Key("float32", 2048, share, SPARSE): ms for share, ms in ((0.7, 4.0), (0.8, 5.0), (0.9, 2.0))}
    lines = targets.verdicts("avx512", {targets.STEP: times}, {}, {0.5: 1.0, 0.7: 3e-6}).splitlines()
    judged = {case.strip(): (found.strip(), met.strip()) for _, case, _, found, met, _ in (x.split("|") for x in lines)}
    assert judged[f"{targets.STEP}, float32, 2048 tokens, 70%"] == ("2.00 ×", "yes")
    assert judged[f"{targets.STEP}, float32, 2048 tokens, 80%"] == ("1.60 ×", "no")
    assert judged[f"{targets.STEP}, float32, 2048 tokens, 90%"] == ("4.00 ×", "yes")
    assert judged["BERT-base, float32, hidden states"] == ("3.0e-06", "no")
    assert judged["memory, float32, 70%"][0] == "not measured"


def test_one_part_is_measured_alone(tmp_path):
    assert main(["sparse", "--quick", "--part", "step", "--rounds", "1", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "sparse.md").read_text(encoding="utf-8")
    assert page.count("faster from") == 1
    with (tmp_path / "sparse.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["contender"] for row in rows} == {SPARSE, OFF, HUGGING_FACE}
    assert {row["tokens"] for row in rows} == {"512"}


def test_with_one_thread_a_median_counts_and_with_more_the_shortest(monkeypatch):
    taken = {0: [3.0, 1.0, 2.0], 1: [0.5, 0.1, 0.3]}
    monkeypatch.setattr(products, "times_by_turns", lambda calls, rounds: {key: taken[key[1]] for key in calls})
    key = Key("float32", 8, None, LINEAR)
    threads = torch.get_num_threads()
    try:
        for count, expected in ((1, 2300), (2, 1100)):
            torch.set_num_threads(count)
            assert products.timed({key: [print, print]}, 3) == {key: pytest.approx(expected)}
    finally:
        torch.set_num_threads(threads)


def test_an_instruction_set_holds_for_both_sides(monkeypatch):
    extension = pytest.importorskip("tamt_kernels._C")
    if "avx2" not in extension.instruction_sets():
        pytest.skip("this CPU has no AVX2")
    best = extension.instruction_set()
    for variable in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY"):
        monkeypatch.setenv(variable, "")
    try:
        instructions.limit("avx2")
        assert instructions.used() == "avx2"
        assert instructions.limited() == (best == "avx512")
        assert products.has_onnx_runtime(torch.float32) == (best == "avx2")
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        assert products.dtypes() == (torch.float32,)
        assert os.environ["ONEDNN_MAX_CPU_ISA"] == os.environ["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
    finally:
        extension.use_instruction_set(best)
    with pytest.raises(UserError, match="--instructions mmx cannot be used: this CPU does not have it"):
        instructions.limit("mmx")


@pytest.mark.parametrize(
    "wrong", [["--tokens", "0"], ["--threads", "1,0"], ["--sparsities", ".5"], ["--sparsities", ".5,1"]]
)
def test_wrong_options(wrong, tmp_path, capsys):
    assert main(["sparse", "--quick", *wrong, "--output", str(tmp_path)]) == 2
    assert "must be" in capsys.readouterr().err
