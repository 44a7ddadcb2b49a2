"""The time that calls take, measured by turns, so that what slows one of them down slows all."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key")


def times_by_turns(runs: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """The seconds that each call takes, once in each of ``rounds`` rounds, after one round to warm up.

    With one thread it is the CPU time of that thread, which other programs hardly change; with more, wall-clock time.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for measured in range(rounds + 1):
        for key, run in runs.items():
            start = clock()
            run()
            if measured:
                times[key].append(clock() - start)
    return times
