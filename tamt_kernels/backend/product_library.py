"""Which library computes the float32 products of linear layers on a CPU: torch's BLAS or oneDNN, whichever is faster.

Nothing is assumed about the CPU. The first process on a machine measures the three products of a linear layer (Y, dX
and dW) for three sizes of W, which takes about a second, and stores the answer in the file of
``tamt_kernels.backend.choices``. The environment variable TAMT_PRODUCTS forces one: ``eager`` (torch's own),
``onednn``, or ``onednn_copies``, which copies transposed operands first.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from tamt_kernels.backend import choices, onednn
from tamt_kernels.backend.library import OPERATORS
from tamt_kernels.backend.timing import times_by_turns

VARIABLE = "TAMT_PRODUCTS"
CPU = torch.device("cpu")
FLOAT32 = choices.type_name(torch.float32)

ROWS = 128
SHAPES = ((768, 768), (3072, 768), (5632, 768))
"""Shapes of W to measure, one for each size class of ``choices.SIZES``."""
REPEATS = 5
GAIN = 0.8
"""oneDNN replaces torch's own product if it takes at most this share of its time; a smaller gain may be noise."""

Table = dict[str, tuple[str, ...]]
"""{operation: backends by size class of W}."""

_chosen: Table | None = None
_only_torch = False


@functools.cache
def default() -> Table:
    """The backend of each product by the size class of W. Measures them if nobody has on this machine.

    Raises:
        RuntimeError: TAMT_PRODUCTS is not the name of a backend, or asks for oneDNN where it cannot be used.
    """
    return _forced() or _kept() or _measure_and_keep()


def chosen() -> Table:
    """The backends that this process uses: those of ``choose``, else of ``default``, whose errors it raises."""
    return _use(default()) if _chosen is None else _chosen


def _use(table: Table) -> Table:
    global _chosen, _only_torch
    _chosen, _only_torch = table, all(backend == "eager" for row in table.values() for backend in row)
    return table


def is_only_torch() -> bool:
    """Whether torch's own functions compute all products, so that there is nothing to choose."""
    if _chosen is None:
        chosen()
    return _only_torch


def row(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The backends of a product by size class of W, for any device and dtype."""
    return chosen()[name] if device.type == "cpu" and dtype == torch.float32 else ("eager",) * len(SHAPES)


def choose(table: Mapping[str, Sequence[str]]) -> list[str]:
    """Use these backends in this process. A resumed run does so, because it must compute the same bits as before.

    Args:
        table: {operation: backends by size class of W}; other operations use the default.

    Returns:
        The operations for which the backends cannot be used here; they use the default.
    """
    usable = {name: tuple(row) for name, row in table.items() if name in _products() and set(row) <= set(backends())}
    _use({**default(), **usable})
    return [name for name in table if name not in usable]


def backends() -> tuple[str, ...]:
    """The backends that can compute these products here, torch's own first."""
    return ("eager",) if onednn.problem() else ("eager", "onednn", "onednn_copies")


def kernel(name: str, backend: str) -> Callable[..., Tensor]:
    """The function that computes a product by a backend."""
    operator = OPERATORS[name]
    return operator.eager if backend == "eager" else operator.onednn[backend]


def _products() -> list[str]:
    """The operators that oneDNN can compute."""
    return [name for name, operator in OPERATORS.items() if operator.onednn]


def _forced() -> Table | None:
    backend = os.environ.get(VARIABLE, "")
    if not backend:
        return None
    names = ("eager", "onednn", "onednn_copies")
    if backend not in names:
        raise RuntimeError(f"{VARIABLE} is {backend!r} but must be {', '.join(names[:-1])} or {names[-1]}, or unset")
    if backend not in backends():
        raise RuntimeError(f"{VARIABLE} is {backend!r}, but {onednn.problem()}; unset it")
    return {name: (backend,) * len(SHAPES) for name in _products()}


def _kept() -> Table | None:
    table = {name: choices.of(CPU).row(name, torch.float32) for name in _products()}
    rows = {name: row for name, row in table.items() if row is not None and set(row) <= set(backends())}
    return rows if len(rows) == len(table) else None


def _measure_and_keep() -> Table:
    if len(backends()) == 1:
        return {name: ("eager",) * len(SHAPES) for name in _products()}
    table = measure()
    before = choices.of(CPU)
    with contextlib.suppress(OSError):  # the folder cannot be written to, so the next process measures again
        choices.keep(CPU, before._replace(backends={**before.backends, **as_choices(table)}))
    return table


def as_choices(table: Table) -> dict[str, dict[str, tuple[str, ...]]]:
    """The table as ``choices.Choices.backends`` holds it."""
    return {name: {FLOAT32: row} for name, row in table.items()}


def measure(shapes: tuple[tuple[int, int], ...] = SHAPES, rows: int = ROWS) -> Table:
    """The fastest backend of each product, for each shape [out, in] of W.

    It measures the CPU time of one thread, which other programs on the machine hardly change.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return _measure(shapes, rows)
    finally:
        torch.set_num_threads(threads)


def _measure(shapes: tuple[tuple[int, int], ...], rows: int) -> Table:
    fastest: dict[str, list[str]] = {name: [] for name in _products()}
    generator = torch.Generator().manual_seed(0)
    for out, width in shapes:
        weight = torch.randn(out, width, generator=generator)
        x, grad = (torch.randn(rows, size, generator=generator) for size in (width, out))
        arguments = {"linear": (x, weight), "linear_backward_x": (grad, weight), "linear_backward_weight": (grad, x)}
        for name, operands in arguments.items():
            times = _times(name, operands)
            best = min(times, key=times.__getitem__)
            fastest[name].append(best if times[best] <= GAIN * times["eager"] else "eager")
    return {name: tuple(row) for name, row in fastest.items()}


def _times(name: str, operands: tuple[Tensor, ...]) -> dict[str, float]:
    """The shortest of a few times of each backend."""
    runs = {backend: partial(kernel(name, backend), *operands) for backend in backends()}
    return {backend: min(times) for backend, times in times_by_turns(runs, REPEATS).items()}
