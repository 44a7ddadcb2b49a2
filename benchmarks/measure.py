"""Contenders measured against each other, in one process and by turns, so that what slows one down slows all."""

import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from benchmarks.clocks import Clock
from tamt.runtime.errors import UserError

Contenders = dict[str, Callable[[], object]]
Result = TypeVar("Result")

FEWEST_SAMPLES, MOST_SAMPLES = 3, 100


class Comparison(NamedTuple):
    """Contenders for one operation on one input.

    ``direction`` is "forward", "backward" or "both". ``moved`` counts the bytes that the operation must read and
    write, each once.
    """

    operation: str
    direction: str
    case: str
    contenders: Contenders
    moved: int


class Measurement(NamedTuple):
    """Quantiles of a contender's times, in milliseconds, and the most memory that it took, in bytes."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    samples: int
    peak_memory: int | None


def check_seconds(seconds: float) -> None:
    """Raises UserError if `--seconds` are none that can be measured for."""
    if not seconds >= 0:
        raise UserError(f"--seconds is {seconds} but must be at least 0")


def measure(contenders: Contenders, clock: Clock, seconds: float, ours: str = "") -> dict[str, Measurement]:
    """Measure contenders in rounds, in each of which every one runs once, in random order.

    Each has the same share of the seconds. A slow one leaves when it has used its own up, after three samples at
    the earliest. One that fails is left out, which is said, unless it is ``ours``.
    """
    contenders = {name: run for name, run in contenders.items() if _tried(name, run, ours)}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    share = seconds / max(len(contenders), 1)
    order = random.Random(0)
    running = list(contenders)
    while running:
        order.shuffle(running)
        for name in running:
            begin = time.perf_counter()
            samples[name].append(clock.time(contenders[name]))
            spent[name] += time.perf_counter() - begin
        running = [
            name
            for name in running
            if len(samples[name]) < FEWEST_SAMPLES or (spent[name] < share and len(samples[name]) < MOST_SAMPLES)
        ]
    # Only now: a look at the memory returns what is freed to the system, and what then were timed would be page faults.
    peaks = {name: clock.peak_memory(run) for name, run in contenders.items()}
    return {name: _summary(samples[name], peaks[name]) for name in contenders}


def made(makers: Mapping[str, Callable[[], Result]], ours: str = "") -> dict[str, Result]:
    """Contenders as their makers make them. One that fails is left out, which is said, unless it is ``ours``."""
    return {name: contender for name, make in makers.items() for contender in _tried(name, make, ours)}


def _tried(name: str, run: Callable[[], Result], ours: str) -> list[Result]:
    """The result of a first call, which compiles, tunes and loads; none where it fails: the others still count."""
    try:
        return [run()]
    except Exception as error:
        if name == ours:
            raise
        print(f"{name} is left out, as it fails: {type(error).__name__}: {error}", flush=True)
        return []


def _summary(samples: list[float], peak_memory: int | None) -> Measurement:
    # Not statistics.quantiles: its rounding puts the 20 % of equal samples above their median, one time in four.
    p20, median, p80 = np.quantile(samples, (0.2, 0.5, 0.8)).tolist()
    return Measurement(median, p20, p80, len(samples), peak_memory)
