"""``python -m benchmarks semi``: products with 2:4 weights through torch's semi-structured tensors, on a GPU.

The products are those of a layer of BERT. Their 2:4 weights are multiplied as dense matrices, and as what
``torch.sparse.to_sparse_semi_structured`` makes of them, by cuSPARSELt and by CUTLASS. Each is started by Python
(eager) and from a CUDA graph. What a backend cannot do is a row with its reason.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

import tamt_kernels as tk
from benchmarks import machine, report
from benchmarks.clocks import Clock, Run
from benchmarks.measure import Measurement, check_seconds, measure
from benchmarks.report import Row

DENSE, EAGER, GRAPH = "dense", "eager", "graph"
SIZES = {"bert-base": (768, 3072), "bert-large": (1024, 4096)}
"""The hidden and the intermediate size of each model."""
GROUPS = (("bert-base", torch.bfloat16), ("bert-large", torch.bfloat16), ("bert-base", torch.float16))
TOKENS = (64, 512, 4096, 16384)
ROTATED_BYTES = 128 << 20
"""Bytes of the dense weights that take turns. Compressed they have 9/16 of that, still more than the L2 cache holds."""
MOST_ERROR = 0.02
"""A product whose relative error is larger is wrong."""
LONGEST_REASON = 160
"""Number of characters after which a reason is cut off."""
INTRODUCTION = """The products of one layer with 2:4 weights: four of hidden × hidden, and the two of the feed-forward.
"2.00 ×" is twice as fast as the dense product of the same mode; below 1 is slower. Eager: Python starts each product.
Graph: a CUDA graph does. Searched: with the algorithm that cuSPARSELt's own search finds fastest. Relative errors are
those against the product in float32."""

Result = TypeVar("Result")
Pass = Callable[[], Tensor]
"""Multiplies by all weights, one after the other; returns the last product."""


class Case(NamedTuple):
    """One product: ``rows`` × ``columns`` is the weight's shape; a layer has ``per_layer`` such weights."""

    model: str
    dtype: torch.dtype
    rows: int
    columns: int
    per_layer: int
    tokens: int


class Operands(NamedTuple):
    """``values`` [tokens, columns]; ``weights`` [rows, columns] each, with a 2:4 mask; ``bias`` [rows]."""

    values: Tensor
    weights: Sequence[Tensor]
    bias: Tensor


class Prepared(NamedTuple):
    """A pass over all weights, how many products that is, and what the first product was like."""

    run: Pass
    products: int
    relative_error: float
    contiguous: bool


Backend = Callable[[Operands], Sequence[Tensor]]
"""Makes the weights that ``F.linear`` is given."""
Mode = Callable[[Pass], Run]
"""Makes a pass over all weights from the eager one."""


class EventClock:
    """Milliseconds of a call that directly follows another one, between two events on the stream.

    So the launch of the first kernel is hidden, while calls that Python starts too slowly are charged for it.
    """

    def __init__(self) -> None:
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, run: Run) -> float:
        run()
        self._begin.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end)

    def peak_memory(self, run: Run) -> int | None:
        return None


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--seconds", type=float, default=0.05, help="for each product in each way (default: 0.05)")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results/DEVICE)")


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    """Measure, and leave ``semi.csv`` and ``semi.md`` in the output folder; both grow while it runs.

    Raises:
        UserError: there is no GPU, the seconds are negative, or the folder cannot be made.
    """
    device = machine.device("cuda")
    check_seconds(options.seconds)
    folder = options.output or machine.results_folder(device)
    results = report.Csv.in_folder(folder, "semi.csv")
    described = machine.describe(device)
    heading = machine.in_words(described)
    print(heading, flush=True)
    clock = EventClock()
    make = partial(operands, device=device)
    modes: dict[str, Mode] = {EAGER: lambda run: run, GRAPH: captured}
    rows: list[Row] = []
    for model, dtype in GROUPS:
        for case in cases(model, dtype):
            measured = measured_rows(case, make, BACKENDS, modes, clock, options.seconds)
            results.write({**row, **described} for row in measured)
            rows += measured
        (folder / "semi.md").write_text(page(heading, rows), encoding="utf-8")
    results.close()
    print(page(heading, rows))
    print(f"results: {folder}")


def cases(model: str, dtype: torch.dtype) -> Iterator[Case]:
    """The products of one layer, at each number of tokens."""
    hidden, intermediate = SIZES[model]
    for tokens in TOKENS:
        for rows, columns, per_layer in ((hidden, hidden, 4), (intermediate, hidden, 1), (hidden, intermediate, 1)):
            yield Case(model, dtype, rows, columns, per_layer, tokens)


def operands(case: Case, device: torch.device) -> Operands:
    """Random operands, with as many weights as do not stay in a cache. The input does, as it was just computed."""
    copies = -(-ROTATED_BYTES // (case.rows * case.columns * case.dtype.itemsize))
    # Not torch's default generator, which a failed capture leaves unusable.
    generator = torch.Generator(device).manual_seed(0)
    randn = partial(torch.randn, generator=generator, dtype=case.dtype, device=device)
    weight = randn(copies * case.rows, case.columns) * case.columns**-0.5
    pruned = tk.pattern_weight(weight, weight, tk.Pattern(2, 4), ranking="abs")
    weights = pruned.view(copies, case.rows, case.columns).unbind(0)
    return Operands(randn(case.tokens, case.columns), weights, randn(case.rows))


def dense(given: Operands) -> Sequence[Tensor]:
    """The weights with their zeros."""
    return given.weights


def cusparselt(given: Operands) -> Sequence[Tensor]:
    """The weights compressed for cuSPARSELt, torch's default where it has the library."""
    return [torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(weight) for weight in given.weights]


def cusparselt_searched(given: Operands) -> Sequence[Tensor]:
    """The same, with the algorithm that cuSPARSELt's own search finds fastest."""
    weights = [torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(weight) for weight in given.weights]
    # Versions of torch differ in whether cuSPARSELt writes the result by tokens or by outputs.
    by_tokens = F.linear(given.values, weights[0], given.bias).is_contiguous()
    assert weights[0].packed is not None
    algorithm = torch._cslt_sparse_mm_search(
        weights[0].packed, given.values.t(), bias=given.bias, transpose_result=by_tokens
    )
    for weight in weights:
        weight.alg_id_cusparselt = algorithm
    return weights


def cutlass(given: Operands) -> Sequence[Tensor]:
    """The weights compressed for the CUTLASS kernels that torch brings."""
    return [torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense(weight) for weight in given.weights]


BACKENDS: dict[str, Backend] = {
    DENSE: dense,
    "cuSPARSELt": cusparselt,
    "cuSPARSELt, searched": cusparselt_searched,
    "CUTLASS": cutlass,
}


def captured(run: Pass) -> Run:
    """The replay of a CUDA graph of a pass.

    Raises:
        ValueError: the replay's last product differs from that of the pass itself.
    """
    expected = run()
    torch.cuda.synchronize()
    graph, stream, pool = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    try:
        # Not by ``torch.cuda.graph``, which empties the allocator's cache before each capture.
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool)
            product = run()
            graph.capture_end()
    except Exception:
        _end_capture(graph, stream, pool)
        raise
    graph.replay()
    torch.cuda.synchronize()
    relative_error(product, expected)
    return graph.replay


def _end_capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> None:
    """End a capture that failed. Before torch 2.12 the allocator believes otherwise that it continues, and fails."""
    with suppress(Exception), torch.cuda.stream(stream):
        graph.capture_end()
    with suppress(Exception):  # as it does where the capture could be ended
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


def relative_error(product: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of the expected product.

    Raises:
        ValueError: it is larger than MOST_ERROR, or NaN.
    """
    expected = expected.float()
    error: float = ((product - expected).norm() / expected.norm()).item()
    if not error <= MOST_ERROR:
        raise ValueError(f"its result is wrong: relative error {error:.2g}")
    return error


def attempted(make: Callable[[], Result]) -> tuple[Result | None, str]:
    """What a call returns, or the reason why it fails, in one line."""
    try:
        return make(), ""
    except Exception as error:
        words = " ".join((str(error).strip() or "no message").splitlines()[0].split())
        return None, f"{type(error).__name__}: {words}"[:LONGEST_REASON]


def prepared(backend: Backend, given: Operands) -> Prepared:
    """A pass over the weights as the backend makes them.

    Raises:
        ValueError: the first product differs from that of the same weight in float32.
    """
    weights = backend(given)
    product = F.linear(given.values, weights[0], given.bias)
    exact = F.linear(given.values.float(), given.weights[0].float(), given.bias.float())

    def one_pass() -> Tensor:
        for weight in weights[:-1]:
            F.linear(given.values, weight, given.bias)
        return F.linear(given.values, weights[-1], given.bias)

    return Prepared(one_pass, len(weights), relative_error(product, exact), product.is_contiguous())


def measured_rows(
    case: Case,
    make_operands: Callable[[Case], Operands],
    backends: Mapping[str, Backend],
    modes: Mapping[str, Mode],
    clock: Clock,
    seconds: float,
) -> list[Row]:
    """A row for each backend and mode: its time for one product, or the reason why there is none."""
    given, no_operands = attempted(partial(make_operands, case))
    contenders: dict[str, Run] = {}
    outcomes: dict[tuple[str, str], tuple[Prepared | None, str]] = {}
    for name, backend in backends.items():
        ready, reason = (None, no_operands) if given is None else attempted(partial(prepared, backend, given))
        for mode, make in modes.items():
            outcomes[name, mode] = ready, reason
            if ready is not None:
                contender, failure = attempted(partial(make, ready.run))
                outcomes[name, mode] = ready, failure
                if contender is not None:
                    contenders[f"{name}, {mode}"] = contender
    times, untimed = attempted(partial(measure, contenders, clock, seconds * len(contenders)))
    rows: list[Row] = []
    for (name, mode), (ready, reason) in outcomes.items():
        time = (times or {}).get(f"{name}, {mode}")
        described = {"backend": name, "mode": mode, **_figures(ready, time)}
        reason = "" if time else reason or untimed or "it failed when it was timed"
        rows.append({**case._asdict(), "dtype": str(case.dtype).removeprefix("torch."), **described, "reason": reason})
    return rows


def _figures(ready: Prepared | None, time: Measurement | None) -> Row:
    """The columns of what was measured, times in microseconds for one product; None where there is nothing."""
    row: Row = dict.fromkeys(("median_us", "p20_us", "p80_us", "samples", "relative_error", "contiguous"))
    if ready is not None:
        row |= {"relative_error": ready.relative_error, "contiguous": str(ready.contiguous)}
        if time is not None:
            quantiles = {"median_us": time.median_ms, "p20_us": time.p20_ms, "p80_us": time.p80_ms}
            row |= {name: 1000 * value / ready.products for name, value in quantiles.items()}
            row |= {"samples": time.samples}
    return row


def page(heading: str, rows: Sequence[Row]) -> str:
    """The Markdown page: a table for each model and type, below it what failed and how exact the products are."""
    parts = [heading, INTRODUCTION]
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in rows):
        group = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
        parts += [f"## {model}, {dtype}", table(group), *notes(group)]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """A line for each number of tokens: the times of the dense products of a layer, and how many times as fast others
    are; a dash where a product is missing.
    """
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    others = [name for name in dict.fromkeys(row["backend"] for row in rows) if name != DENSE]
    lines = [["tokens", *(f"dense, {mode}, ms" for mode in modes)]]
    lines[0] += [f"{name}, {mode}" for name in others for mode in modes]
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        line = [row for row in rows if row["tokens"] == tokens]
        dense_ms = {mode: layer_ms(line, DENSE, mode) for mode in modes}
        cells = [report.figure(time) if time else "–" for time in dense_ms.values()]
        for name in others:
            for mode in modes:
                reference, time = dense_ms[mode], layer_ms(line, name, mode)
                cells.append(f"{reference / time:.2f} ×" if reference and time else "–")
        lines.append([str(tokens), *cells])
    return report.table(lines)


def layer_ms(rows: Sequence[Row], backend: object, mode: object) -> float | None:
    """The milliseconds of all products of one layer; None where one of them is missing."""
    total = 0.0
    for row in rows:
        if (row["backend"], row["mode"]) == (backend, mode):
            median, per_layer = row["median_us"], row["per_layer"]
            if not isinstance(median, float) or not isinstance(per_layer, int):
                return None
            total += per_layer * median / 1000
    return total or None


def notes(rows: Sequence[Row]) -> list[str]:
    """The largest relative error of each backend, and a list of the reasons why products are missing."""
    errors: dict[object, float] = {}
    failures: dict[tuple[object, object], dict[object, None]] = {}
    for row in rows:
        error = row["relative_error"]
        if isinstance(error, float):
            errors[row["backend"]] = max(error, errors.get(row["backend"], 0.0))
        if row["reason"]:
            failures.setdefault((row["backend"], row["reason"]), {})[row["mode"]] = None
    exact = "; ".join(f"{name} {error:.2g}" for name, error in errors.items())
    lines = [f"- {name} ({', '.join(map(str, modes))}): {reason}" for (name, reason), modes in failures.items()]
    paragraphs = (f"Largest relative error: {exact}." if exact else "", "\n".join(lines))
    return [text for text in paragraphs if text]
