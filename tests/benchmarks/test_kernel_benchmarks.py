"""The benchmarks run, and say what they measured; how fast anything is, is not asserted."""

import csv
import sys

import pytest
import torch

from benchmarks import clocks, report, scores
from benchmarks.__main__ import main
from benchmarks.kernels import OPERATIONS, layers, targets, threshold
from benchmarks.kernels.setting import COMPILED, EAGER, OURS, Setting
from benchmarks.measure import made, measure

CPU = torch.device("cpu")


def test_a_quick_run(tmp_path, capsys):
    folder = tmp_path / "results"
    arguments = ["kernels", "--device", "cpu", "--quick", "--seconds", "0", "--output", str(folder)]
    assert main([*arguments, "--operation", "mask_weight", "--operation", "masked_embedding"]) == 0
    assert {path.name for path in folder.iterdir()} == {"kernels.csv", "kernels.md", "kernels.png"}
    with (folder / "kernels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["operation"] for row in rows} == {"mask_weight", "masked_embedding"}
    assert {row["direction"] for row in rows} == {"forward", "backward", "both"}
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert all(row[column] for column in ("device", "cpu", "threads", "torch", "triton", "commit", "date"))
    shown = capsys.readouterr().out
    assert "masked_embedding, both" in shown
    assert "torch.compile" not in shown


@pytest.mark.parametrize("operation", OPERATIONS)
def test_contenders_of_one_comparison_agree(operation):
    """One that computes less than the others would make the comparison worthless."""
    for comparison in OPERATIONS[operation](Setting(CPU, quick=True)):
        ours = comparison.contenders[OURS]()
        if operation == "topk_threshold":
            values = [comparison.contenders[name]() for name in threshold.LOOK_UPS if name in comparison.contenders]
            assert all([float(v) for v in each] == ours.values.tolist() for each in values)
        elif operation == "mask_weights":
            torch.testing.assert_close(ours[0], comparison.contenders["mask_weight loop"]())
        elif comparison.direction != "backward":
            eager = comparison.contenders["eager"]()
            torch.testing.assert_close(ours, eager)
            if "float mask" in comparison.contenders:
                torch.testing.assert_close(ours, comparison.contenders["float mask"](), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["speed"], "invalid choice: 'speed'"),
        (["kernels"], "required: --device"),
        (["kernels", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["kernels", "--device", "cpu", "--operation", "sort"], "invalid choice: 'sort'"),
        (["kernels", "--device", "cpu", "--seconds", "-1"], "--seconds is -1.0 but must be at least 0"),
        (["kernels", "--device", "cpu", "--seconds", "nan"], "--seconds is nan but must be at least 0"),
        (["kernels", "--device", "cpu", "--output", __file__], "cannot be written to"),
    ],
)
def test_a_bad_request_is_one_sentence(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m benchmarks: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert main(["kernels", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class CountingClock:
    def __init__(self, milliseconds=1.0):
        self.milliseconds = milliseconds

    def time(self, run):
        run()
        return self.milliseconds

    def peak_memory(self, run):
        return 7


def test_contenders_run_by_turns():
    order = []
    measured = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CountingClock(), 0)
    rounds = order[2:]  # after a warm-up of each
    assert [sorted(rounds[i : i + 2]) for i in range(0, len(rounds), 2)] == [["a", "b"]] * 3
    assert measured["a"] == (1.0, 1.0, 1.0, 3, 7)


@pytest.mark.parametrize("milliseconds", [0.028582, 0.09687, 0.1 + 0.2])
def test_quantiles_of_equal_samples_are_equal(milliseconds):
    """Interpolated by a sum of two products, the first of them comes out above the median."""
    measured = measure({"a": lambda: None}, CountingClock(milliseconds), 0)["a"]
    assert measured.p20_ms == measured.median_ms == measured.p80_ms == milliseconds


def test_the_memory_of_a_call():
    peak = clocks.CpuClock().peak_memory(lambda: torch.ones(4 << 20).add(1).sum())
    if peak is None:
        pytest.skip("this system does not tell the resident set")
    assert 32e6 < peak < 40e6


def test_a_contender_that_fails_is_left_out_and_ours_is_not(capsys):
    def fail():
        raise RuntimeError("out of memory")

    assert set(measure({"a": lambda: None, "b": fail}, CountingClock(), 0, ours="a")) == {"a"}
    assert capsys.readouterr().out == "b is left out, as it fails: RuntimeError: out of memory\n"
    with pytest.raises(RuntimeError, match="out of memory"):
        measure({"a": lambda: None, "b": fail}, CountingClock(), 0, ours="b")


def test_a_contender_that_cannot_be_made_is_left_out_and_ours_is_not(capsys):
    def fail():
        raise RuntimeError("no graph")

    assert made({"a": lambda: 1, "b": fail}, ours="a") == {"a": 1}
    assert capsys.readouterr().out == "b is left out, as it fails: RuntimeError: no graph\n"
    with pytest.raises(RuntimeError, match="no graph"):
        made({"a": lambda: 1, "b": fail}, ours="b")


def test_targets_name_what_is_measured():
    measured = set()
    for comparisons in OPERATIONS.values():
        for comparison in comparisons(Setting(CPU, quick=True)):
            measured |= {(comparison.operation, comparison.direction, name) for name in comparison.contenders}
    for target in targets.TARGETS:
        assert (target.operation, target.direction, OURS) in measured
        assert (target.operation, target.direction, target.against) in measured


def test_a_target():
    target = targets.Target("cpu", "binarize", "forward", "n", "eager", 0.5)
    assert target.ratio({("binarize", "forward", "n", OURS): 1.0, ("binarize", "forward", "n", "eager"): 4.0}) == 0.25
    assert target.ratio({("binarize", "forward", "n", OURS): 1.0}) is None


def test_scores_are_those_of_mask_training():
    shapes = scores.bert_shapes(hidden=64, intermediate=128, vocabulary=3000, layers=1)
    assert len(scores.bert_shapes()) == 73
    assert sum(rows * columns for rows, columns in scores.bert_shapes()) == 108_375_552
    initial = scores.scores("OMP init", shapes, CPU)[0]
    assert initial.unique().tolist() == pytest.approx([0, 0.02])
    assert int((initial > 0).sum()) == scores.keep(shapes[0])
    later = scores.scores("100 steps", shapes, CPU)
    never = (later[0] == initial).all(dim=1)
    assert 0.03 < never.float().mean() < 0.5
    moved = (later[0] - initial)[~never].abs()
    assert 0 < moved.median() < 100 * scores.LEARNING_RATE
    assert later[1].unique().numel() > 0.99 * later[1].numel()


def test_a_table():
    assert report.table([("a", "bc"), ("def", "g")]) == "| a   | bc |\n|-----|----|\n| def | g  |"


def test_a_machine_without_matplotlib_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = report.bars(tmp_path / "kernels.png", "title", {"a": {OURS: 1.0}}, OURS)
    assert message == "kernels.png is left out, as matplotlib is not installed"
    assert not list(tmp_path.iterdir())


def test_a_contender_with_other_gradients_is_left_out(capsys):
    x = torch.ones(3, requires_grad=True)
    right, wrong = layers.Layer(lambda: 2 * x, [x]), layers.Layer(lambda: 2 * x.detach() + 0 * x, [x])
    contenders = {OURS: right, EAGER: right, COMPILED: wrong}
    found = [set(each.contenders) for each in layers.directions("product", "three", contenders, {}, (1, 1))]
    assert found == [{OURS, EAGER, COMPILED}, {OURS, EAGER}, {OURS, EAGER}]
    assert (
        f"product, three: left out, as its gradients are not those of the definition: {COMPILED}"
        in capsys.readouterr().out
    )
