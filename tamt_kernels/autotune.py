"""Measure which backend runs each operation fastest on this machine's devices, and store the answer.

``python -m tamt_kernels.autotune`` prints its measurements and writes the table that ``tamt_kernels.backend.choices``
reads. ``--quick`` measures small matrices briefly, to check that everything runs.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from tamt_kernels import reference
from tamt_kernels.backend import choices, dispatch, onednn, product_library
from tamt_kernels.ops.pack_sparse import VALUE_TYPES, pack_sparse
from tamt_kernels.ops.sparse_linear import sparse_linear
from tamt_kernels.ops.threshold import topk_threshold

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Shapes of W, one for each size class: BERT-base's attention, FFN and word embedding.
SHAPES = ((768, 768), (3072, 768), (30522, 768))
ROWS = (1, 4, 16, 32, 64, 128, 256)
SPARSITY = 0.7

# Tokens and sparsities of the products whose break-even is measured: from 32 tokens on it hardly moves.
TOKENS = 128
LOW, HIGH = 0.3, 0.9

# A backend replaces the built-in one if it takes at most this share of its time: a smaller gain may be noise, and on a
# CPU the choice itself takes time (``dispatch``).
GAIN = 0.9

# The kernels never wait for a GPU, and an id out of range does not stop it. The definitions of these do not promise
# that.
NO_CHOICE_ON_A_GPU = {"topk_threshold_unchecked", "masked_embedding", "masked_embedding_backward"}


class Clock:
    """Times as many calls as fit into ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def milliseconds(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
        """The median time of a call; on a GPU, until the GPU has finished it."""
        timer = Timer(
            "run(*arguments)", globals={"run": run, "arguments": arguments}, num_threads=torch.get_num_threads()
        )
        return 1e3 * timer.blocked_autorange(min_run_time=self.seconds).median


def mask(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A score matrix, its threshold and its cut."""
    score = torch.randn(shape, device=device)
    values, cuts = topk_threshold([score], [score.numel() - int(score.numel() * SPARSITY)])
    return score, values[0], cuts[0]


def cases(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The operations of one matrix in a training step of this dtype, and their arguments."""
    score, value, cut = mask(shape, device)
    weight, grad = torch.randn(2, *shape, device=device).to(dtype)
    kept = reference.binarize(score, value, cut)
    keep = [int(kept.sum())]
    ids = torch.randint(shape[0], (256,), device=device)
    rows = torch.randn(256, shape[1], device=device).to(dtype)
    if dtype == torch.float32:  # masks are bool, and scores are float32 in training
        yield "topk_threshold", ([score], keep)
        yield "topk_threshold_unchecked", ([score], keep, value[None])
        yield "binarize", (score, value, cut)
        yield "pack_mask", (kept,)
        yield "unpack_mask", (reference.pack_mask(kept), list(shape))
    yield "prune_", ([grad], [reference.pack_mask(kept)])
    yield "mask_weight", (weight, score, value, cut)
    yield "mask_weights", ([weight], [score], value[None], cut[None], dtype)
    yield "ste_backward", (grad, weight, torch.float32)
    yield "ste_backward_into", (torch.zeros_like(score), grad, weight)
    yield "gradient_norm", ([grad], [weight])
    yield "masked_embedding", (ids, weight, score, value, cut)
    yield "masked_embedding_backward", (rows, ids, weight, None, torch.float32)


def fastest(times: dict[str, float]) -> str:
    """The backend with the shortest time if it gains enough on the built-in one, which comes first."""
    built_in, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[best] <= GAIN * times[built_in] else built_in


def backends(
    device: torch.device, clock: Clock, shapes: tuple[tuple[int, int], ...]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """The fastest backend of each operation for each dtype and shape."""
    table: dict[str, dict[str, tuple[str, ...]]] = {}
    for dtype in DTYPES:
        for shape in shapes:
            for operation, arguments in cases(shape, dtype, device):
                available = dispatch.available(operation, device)
                if len(available) == 1 or (device.type == "cuda" and operation in NO_CHOICE_ON_A_GPU):
                    continue
                kernels = {backend: dispatch.kernel(operation, backend) for backend in available}
                times = {backend: clock.milliseconds(kernel, arguments) for backend, kernel in kernels.items()}
                show(operation, shape, dtype, times)
                rows = table.setdefault(operation, {})
                rows[choices.type_name(dtype)] = (*rows.get(choices.type_name(dtype), ()), fastest(times))
    return {operation: merge_equal(rows) for operation, rows in table.items()}


def merge_equal(rows: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """One row for any dtype if the rows of all dtypes are the same."""
    return {choices.ANY: next(iter(rows.values()))} if len(set(rows.values())) == 1 else rows


def few_rows(device: torch.device, clock: Clock, shapes: tuple[tuple[int, int], ...]) -> dict[str, tuple[int, ...]]:
    """For each dtype and shape, the number of rows up to which masking W as it is read beats W ⊙ m and a product."""
    masked_matmul = dispatch.kernel("masked_matmul", "triton")
    mask_weight = torch.ops.tamt_kernels.mask_weight

    def separately(x: Tensor, *masked: Tensor) -> Tensor:
        return F.linear(x, mask_weight(*masked))

    def most(dtype: torch.dtype, shape: tuple[int, int]) -> int:
        weight, masked = torch.randn(shape, device=device).to(dtype), mask(shape, device)
        most = 0
        for rows in ROWS:
            arguments = (torch.randn(rows, shape[1], device=device).to(dtype), weight, *masked)
            ways = {"mask_weight, product": separately, "masked_matmul": masked_matmul}
            times = {name: clock.milliseconds(way, arguments) for name, way in ways.items()}
            show(f"{rows} rows", shape, dtype, times)
            if times["masked_matmul"] >= times["mask_weight, product"]:
                break
            most = rows
        return most

    return {choices.type_name(dtype): tuple(most(dtype, shape) for shape in shapes) for dtype in DTYPES}


def break_even(clock: Clock, shape: tuple[int, int]) -> dict[str, float]:
    """For each type of kept values, the sparsity from which the sparse product is faster than torch's and oneDNN's
    dense ones on a CPU: where the line through its times at LOW and HIGH meets theirs.
    """
    found = {}
    for dtype in VALUE_TYPES:
        x, weight = (torch.randn(size).to(dtype) for size in ((TOKENS, shape[1]), shape))
        times = {"dense": clock.milliseconds(F.linear, (x, weight))}
        if dtype == torch.float32 and onednn.problem() is None:
            times["dense by oneDNN"] = clock.milliseconds(onednn.linear, (x, weight))
        dense = min(times.values())
        for sparsity in (LOW, HIGH):
            packed = pack_sparse(weight, torch.rand(shape) >= sparsity)
            times[f"{sparsity:.0%} zeros"] = clock.milliseconds(sparse_linear, (x, packed))
        show(f"{TOKENS} tokens", shape, dtype, times)
        slow, fast = (times[f"{sparsity:.0%} zeros"] for sparsity in (LOW, HIGH))
        reached = LOW + (HIGH - LOW) * (slow - dense) / (slow - fast) if slow > fast else float(dense < fast)
        found[choices.type_name(dtype)] = round(min(1.0, max(0.0, reached)), 2)
    return found


def show(operation: str, shape: tuple[int, int], dtype: torch.dtype, times: dict[str, float]) -> None:
    case = f"{operation}, {shape[0]} × {shape[1]}, {choices.type_name(dtype)}"
    print(f"{case:54} " + "   ".join(f"{name} {time:.4g} ms" for name, time in times.items()), flush=True)


def show_table(measured: choices.Choices, shapes: tuple[tuple[int, int], ...]) -> None:
    """Print what runs from now on, by dtype and shape."""
    first, second, third = (f"{rows} × {columns}" for rows, columns in shapes)
    print(f"{'':42} {first:12} {second:12} {third}")
    rows = {
        f"{operation}, {'any type' if kind == choices.ANY else kind}": row
        for operation, kinds in measured.backends.items()
        for kind, row in kinds.items()
    }
    for kind, counts in measured.few_rows.items():
        rows[f"W masked as it is read, {kind}"] = tuple(f"{count} rows" for count in counts)
    for name, row in rows.items():
        print(f"{name:42} {row[0]:12} {row[1]:12} {row[2]}")
    for kind, sparsity in measured.break_even.items():
        print(f"{'sparse products from, ' + kind:42} {sparsity:.0%} zeros")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tamt_kernels.autotune",
        description="Measure which backend runs each operation fastest on this machine, and store the answer.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure small matrices briefly, to check that everything runs"
    )
    quick = parser.parse_args(arguments).quick
    if forced := os.environ.get("TAMT_KERNELS"):
        print(f"autotune: error: TAMT_KERNELS={forced} leaves no choice to measure; unset it", file=sys.stderr)
        return 2
    clock, shapes = (Clock(0.002), ((64, 64),) * len(SHAPES)) if quick else (Clock(0.2), SHAPES)
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        print(choices.name(device))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            measured = choices.Choices(backends(device, clock, shapes), {}, {})
            if device.type == "cpu":
                with torch.no_grad():
                    measured.break_even.update(break_even(clock, shapes[1]))
                measured.backends.update(product_library.as_choices(product_library.measure(shapes)))
            if dispatch.serves_product(device):
                measured = measured._replace(few_rows=few_rows(device, clock, shapes))
        choices.keep(device, measured)
        show_table(measured, shapes)
    print(f"kept in {choices.path()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
