"""``python -m benchmarks semi``: what its rows and its table say, with fakes of what needs a GPU."""

import csv
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks import clocks, index, machine, semi
from benchmarks.__main__ import main

CPU = torch.device("cpu")
CASE = semi.Case("bert-base", torch.float32, 32, 64, 4, tokens=8)


class FakeClock:
    """Runs each call, and says that it took 3 ms."""

    def time(self, run):
        run()
        return 3.0

    def peak_memory(self, run):
        return None


def eager(run):
    return run


def measured(backends, modes=None, make_operands=None, clock=None):
    rows = semi.measured_rows(
        CASE,
        make_operands or partial(semi.operands, device=CPU),
        backends,
        modes or {"eager": eager},
        clock or FakeClock(),
        0,
    )
    return {(row["backend"], row["mode"]): row for row in rows}


@pytest.fixture(autouse=True)
def few_weights(monkeypatch):
    monkeypatch.setattr(semi, "ROTATED_BYTES", 3 * 32 * 64 * 4)


def test_operands_have_two_of_each_four_weights():
    given = semi.operands(CASE, CPU)
    assert len(given.weights) == 3
    for weight in given.weights:
        assert weight.is_contiguous()
        assert (weight.view(-1, 4).count_nonzero(1) == 2).all()
    assert F.linear(given.values, given.weights[0], given.bias).shape == (8, 32)


def test_a_row_has_the_time_of_one_product():
    row = measured({"dense": semi.dense})["dense", "eager"]
    assert row["median_us"] == pytest.approx(1000)  # 3 ms for three products
    assert row["relative_error"] < 1e-6
    assert (row["samples"], row["contiguous"], row["reason"]) == (3, "True", "")


def test_the_times_are_of_all_weights():
    products = []

    class Counted(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            products.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    given = semi.operands(CASE, CPU)
    ready = semi.prepared(lambda given: [weight.as_subclass(Counted) for weight in given.weights], given)
    before = len([func for func in products if func is F.linear])
    ready.run()
    assert len([func for func in products if func is F.linear]) - before == ready.products == 3


def test_a_backend_that_raises_is_a_row_with_its_reason():
    def broken(given):
        raise NotImplementedError("Supported only on GPUs\nwith compute capability 8.x")

    rows = measured({"broken": broken, "dense": semi.dense}, {"eager": eager, "graph": eager})
    for mode in ("eager", "graph"):
        assert rows["broken", mode]["reason"] == "NotImplementedError: Supported only on GPUs"
        assert rows["broken", mode]["median_us"] is None
        assert rows["dense", mode]["reason"] == ""


def test_a_graph_that_cannot_be_captured_leaves_the_eager_time():
    def graph(run):
        raise RuntimeError

    rows = measured({"dense": semi.dense}, {"eager": eager, "graph": graph})
    assert rows["dense", "eager"]["median_us"] > 0
    assert rows["dense", "graph"]["median_us"] is None
    assert rows["dense", "graph"]["reason"] == "RuntimeError: no message"


def test_a_failed_capture_is_ended(monkeypatch):
    """Else the allocator of torch before 2.12 refuses all later captures."""
    ended = []

    class Graph:
        def capture_begin(self, pool):
            ended.clear()

        def capture_end(self):
            ended.append("capture")
            raise RuntimeError("previous error during capture")

    runs = iter([torch.zeros(1)])

    def run():
        for product in runs:  # the second call, that of the capture, fails
            return product
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: ended.append(pool), raising=False)
    _, reason = semi.attempted(partial(semi.captured, run))
    assert reason == "RuntimeError: operation not permitted when stream is capturing"
    assert ended == ["capture", (0, (0, 7))]


def test_a_wrong_result_is_no_time():
    def wrong(given):
        return [weight * 1.1 for weight in given.weights]

    row = measured({"wrong": wrong})["wrong", "eager"]
    assert row["median_us"] is None
    assert row["reason"].startswith("ValueError: its result is wrong: relative error 0.0")


def test_nothing_fails_with_the_operands_or_the_clock():
    def make_operands(case):
        raise torch.OutOfMemoryError("too large")

    row = measured({"dense": semi.dense}, make_operands=make_operands)["dense", "eager"]
    assert row["reason"] == "OutOfMemoryError: too large"

    class BrokenClock(FakeClock):
        def time(self, run):
            raise RuntimeError("an event failed")

    row = measured({"dense": semi.dense}, clock=BrokenClock())["dense", "eager"]
    assert row["reason"] == "RuntimeError: an event failed"


def test_all_rows_have_the_same_columns():
    def broken(given):
        raise RuntimeError("no")

    rows = measured({"dense": semi.dense, "broken": broken}, clock=clocks.CpuClock())
    assert len({tuple(row) for row in rows.values()}) == 1


def rows_of(backend, mode, medians, tokens=64, reason=""):
    """Rows of the three products of a layer."""
    for (rows, columns, per_layer), median in zip([(8, 8, 4), (32, 8, 1), (8, 32, 1)], medians, strict=True):
        case = {"model": "bert-base", "dtype": "bfloat16", "rows": rows, "columns": columns, "per_layer": per_layer}
        figures = {"tokens": tokens, "backend": backend, "mode": mode, "median_us": median, "relative_error": 0.002}
        yield {**case, **figures, "reason": reason if median is None else ""}


def test_the_table_says_how_many_times_as_fast():
    rows = [
        *rows_of("dense", "eager", [10.0, 40.0, 20.0]),  # 4 × 10 + 40 + 20 = 100 µs
        *rows_of("dense", "graph", [5.0, 20.0, 10.0]),  # 50 µs
        *rows_of("cuSPARSELt", "eager", [40.0, 20.0, 20.0]),  # 200 µs: slower
        *rows_of("cuSPARSELt", "graph", [2.5, 10.0, 5.0]),  # 25 µs
        *rows_of("CUTLASS", "eager", [1.0, None, 1.0], reason="RuntimeError: compute capability 8.x"),
        *rows_of("CUTLASS", "graph", [None, None, None], reason="RuntimeError: compute capability 8.x"),
    ]
    lines = semi.page("device A GPU, commit abc", rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    columns = ["cuSPARSELt, eager", "cuSPARSELt, graph", "CUTLASS, eager", "CUTLASS, graph"]
    assert cells == [
        ["tokens", "dense, eager, ms", "dense, graph, ms", *columns],
        ["64", "0.1", "0.05", "0.50 ×", "2.00 ×", "–", "–"],
    ]
    assert lines[0] == "device A GPU, commit abc"
    assert "## bert-base, bfloat16" in lines
    assert "- CUTLASS (eager, graph): RuntimeError: compute capability 8.x" in lines
    assert "Largest relative error: dense 0.002; cuSPARSELt 0.002; CUTLASS 0.002." in lines


def test_the_index_lists_the_page(tmp_path):
    (tmp_path / "cpu").mkdir()
    heading = ", ".join(f"{name} {value}" for name, value in machine.describe(CPU).items())
    (tmp_path / "cpu" / "semi.md").write_text(semi.page(heading, list(rows_of("dense", "eager", [1.0, 1.0, 1.0]))))
    assert "[cpu/semi.md](cpu/semi.md)" in index.page(tmp_path)


def test_the_products_of_a_layer_hold_its_weights():
    for model, layer in (("bert-base", 12 * 768**2), ("bert-large", 12 * 1024**2)):
        cases = [case for case in semi.cases(model, torch.bfloat16) if case.tokens == 512]
        assert sum(case.rows * case.columns * case.per_layer for case in cases) == layer


def test_a_run_writes_every_row_and_the_page(tmp_path, monkeypatch):
    """On a CPU, as if it were a GPU: only dense products succeed, and no graph is captured."""

    def captured(run):
        raise RuntimeError("there is no GPU")

    monkeypatch.setattr(machine, "device", lambda name: CPU)
    monkeypatch.setattr(semi, "EventClock", FakeClock)
    monkeypatch.setattr(semi, "captured", captured)
    monkeypatch.setattr(semi, "SIZES", {"bert-base": (32, 64), "bert-large": (64, 64)})
    monkeypatch.setattr(semi, "TOKENS", (8,))
    assert main(["semi", "--seconds", "0", "--output", str(tmp_path)]) == 0
    with (tmp_path / "semi.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(semi.GROUPS) * 3 * len(semi.BACKENDS) * 2
    assert all(row["commit"] and (row["reason"] == "") == (row["median_us"] != "") for row in rows)
    assert {(row["backend"], row["mode"]) for row in rows if row["median_us"]} == {("dense", "eager")}
    page = (tmp_path / "semi.md").read_text(encoding="utf-8")
    assert page.count("- CUTLASS (eager, graph): RuntimeError: ") == len(semi.GROUPS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path, capsys):
    assert main(["semi", "--output", str(tmp_path / "results")]) == 2
    assert "there is no GPU that torch can use" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
