"""Measure which backend runs each operation fastest on this machine's devices, and keep the answer.

``python -m tamt_kernels.autotune`` prints what it measured and writes the table that ``tamt_kernels.choices`` reads;
``--quick`` measures small matrices for a moment, to see that everything runs.
"""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from tamt_kernels import choices, dispatch, reference
from tamt_kernels.library import EAGER, TRITON

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(768, 768), (3072, 768)]
ROWS = (1, 4, 16, 32, 64, 128, 256)
SPARSITY = 0.7

Candidates = dict[str, Callable[..., Any]]


class Clock:
    """Times calls, as many as fit into ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def milliseconds(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
        """The median time of a call; on a GPU until it is done there."""
        timer = Timer(
            "run(*arguments)", globals={"run": run, "arguments": arguments}, num_threads=torch.get_num_threads()
        )
        return 1e3 * timer.blocked_autorange(min_run_time=self.seconds).median


def mask(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A score matrix, its threshold and its cut."""
    score = torch.randn(shape, device=device)
    values, cuts = reference.topk_threshold([score], [score.numel() - int(score.numel() * SPARSITY)])
    return score, values[0], cuts[0]


def cases(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Arguments of each operation that one matrix has in a training step of this type."""
    score, value, cut = mask(shape, device)
    weight, grad = torch.randn(2, *shape, device=device).to(dtype)
    kept = reference.binarize(score, value, cut)
    ids = torch.randint(shape[0], (256,), device=device)
    rows = torch.randn(256, shape[1], device=device).to(dtype)
    yield "topk_threshold", ([score], [int(kept.sum())])
    yield "binarize", (score, value, cut)
    yield "pack_mask", (kept,)
    yield "unpack_mask", (reference.pack_mask(kept), list(shape))
    yield "mask_weight", (weight, score, value, cut)
    yield "mask_weights", ([weight] * 2, [score] * 2, value.repeat(2), cut.repeat(2), dtype)
    yield "ste_backward", (grad, weight, torch.float32)
    yield "ste_backward_into", (torch.zeros_like(score), grad, weight)
    yield "masked_embedding", (ids, weight, score, value, cut)
    yield "masked_embedding_backward", (rows, ids, weight, None, torch.float32)


def candidates(operation: str, device: torch.device) -> Candidates:
    """What can run an operation on a device, where dispatch has a choice."""
    found: Candidates = {}
    if device.type == "cuda" and operation in TRITON and not dispatch.triton_problem(device):
        kernel = TRITON[operation]
        found["triton"] = getattr(importlib.import_module(kernel.module), kernel.launcher)
    if device.type == "cpu" and dispatch.has_kernel(operation, "CPU"):
        found["cpp"] = getattr(torch.ops.tamt_kernels, operation)
    return found | {"eager": EAGER[operation]} if found else {}


def fastest(device: torch.device, clock: Clock, shapes: list[tuple[int, int]]) -> dict[str, str]:
    """The backend of each operation with the shortest time over all types and shapes, each of the same weight."""
    logarithms: dict[str, dict[str, float]] = {}
    for shape in shapes:
        for dtype in DTYPES:
            for operation, arguments in cases(shape, dtype, device):
                times = {
                    name: clock.milliseconds(run, arguments) for name, run in candidates(operation, device).items()
                }
                show(operation, shape, dtype, times)
                totals = logarithms.setdefault(operation, dict.fromkeys(times, 0.0))
                for name, time in times.items():
                    totals[name] += math.log(time)
    return {operation: min(totals, key=totals.__getitem__) for operation, totals in logarithms.items() if totals}


def few_rows(device: torch.device, clock: Clock, shapes: list[tuple[int, int]]) -> dict[str, int]:
    """For each type the most rows up to which masking W as it is read beats W ⊙ m and a product, at every shape."""
    found = {}
    kernel = TRITON["masked_matmul"]
    masked_matmul = getattr(importlib.import_module(kernel.module), kernel.launcher)
    mask_weight = torch.ops.tamt_kernels.mask_weight
    for dtype in DTYPES:
        most = 0
        for rows in ROWS:
            wins = []
            for shape in shapes:
                weight, x = (
                    torch.randn(shape, device=device).to(dtype),
                    torch.randn(rows, shape[1], device=device).to(dtype),
                )
                arguments = (x, weight, *mask(shape, device))
                times = {
                    "masked_matmul": clock.milliseconds(masked_matmul, arguments),
                    "mask_weight, product": clock.milliseconds(
                        lambda x, *masked: F.linear(x, mask_weight(*masked)), arguments
                    ),
                }
                show(f"{rows} rows", shape, dtype, times)
                wins.append(times["masked_matmul"] < times["mask_weight, product"])
            if not all(wins):
                break
            most = rows
        found[str(dtype).removeprefix("torch.")] = most
    return found


def show(operation: str, shape: tuple[int, int], dtype: torch.dtype, times: dict[str, float]) -> None:
    if times:
        case = f"{operation}, {shape[0]} × {shape[1]}, {str(dtype).removeprefix('torch.')}"
        print(f"{case:52} " + "   ".join(f"{name} {time:.4g} ms" for name, time in times.items()), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tamt_kernels.autotune",
        description="Measure which backend runs each operation fastest here, and keep the answer.",
    )
    parser.add_argument("--quick", action="store_true", help="small matrices, for a moment: a check, no figures")
    quick = parser.parse_args(arguments).quick
    if forced := os.environ.get("TAMT_KERNELS"):
        print(f"autotune: error: TAMT_KERNELS={forced} leaves no choice to measure; unset it", file=sys.stderr)
        return 2
    dispatch.register_all()
    clock, shapes = (Clock(0.002), [(64, 64)]) if quick else (Clock(0.2), SHAPES)
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        print(choices.name(device))
        found = choices.Choices(fastest(device, clock, shapes), {})
        if dispatch.serves_product(device):
            found = found._replace(few_rows=few_rows(device, clock, shapes))
        choices.keep(device, found)
        for backend in choices.BACKENDS:
            operations = [operation for operation, chosen in found.backends.items() if chosen == backend]
            if operations:
                print(f"{backend}: {', '.join(operations)}")
        if found.few_rows:
            print("W masked as it is read: " + ", ".join(f"{d} up to {n} rows" for d, n in found.few_rows.items()))
    print(f"kept in {choices.path()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
