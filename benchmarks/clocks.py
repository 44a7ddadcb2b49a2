"""The time and the memory that one call takes, on a CPU and on a GPU.

In a training step hundreds of megabytes pass between two uses of a matrix, so the caches are swept before every
sample.
"""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

Run = Callable[[], object]


class Clock(Protocol):
    def time(self, run: Run) -> float:
        """Milliseconds of one call."""

    def peak_memory(self, run: Run) -> int | None:
        """Bytes that one call has at most beyond those that were there before it; None where that is not known."""


class CpuClock:
    """Wall-clock time, and the growth of the resident set, which also counts what numpy and C++ take."""

    def __init__(self) -> None:
        self._swept = torch.zeros(16 << 20)
        self._libc = ctypes.CDLL(None) if os.name == "posix" else None

    def time(self, run: Run) -> float:
        # Here only: who looks at memory alone is to see what glibc takes as users have it.
        keep_freed_memory()
        self._swept.add_(1)
        begin = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - begin) / 1e6

    def peak_memory(self, run: Run) -> int | None:
        if trim := getattr(self._libc, "malloc_trim", None):
            trim(0)  # freed memory that is still resident would hide what the call takes
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # starts VmHWM anew
            before = _resident("VmRSS")
            run()
            return max(_resident("VmHWM") - before, 0)
        except OSError:
            return None


def keep_freed_memory() -> None:
    """Let glibc keep what is freed. It would return every large block to the system, and what were timed would be the
    page faults of the next call.
    """
    m_trim_threshold, m_mmap_threshold, one_gigabyte, never = -1, -3, 1 << 30, -1
    if os.name == "posix" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(m_mmap_threshold, one_gigabyte)
        mallopt(m_trim_threshold, never)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system does not tell {field}")


class CudaClock:
    """The time between two events on the stream, and torch's allocator.

    A pause goes ahead of every sample, behind which its launches queue up: what is timed is the work of the device
    and not how fast Python launches it. Where a call waits for the device itself, its waits count.
    """

    PAUSE_MS = 5.0

    def __init__(self) -> None:
        self._swept = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cycles = 10_000_000
        for _ in range(2):  # the first launch also loads the kernel
            elapsed = self._between_events(lambda: torch.cuda._sleep(cycles))
        self._pause = int(cycles / elapsed * self.PAUSE_MS)

    def time(self, run: Run) -> float:
        self._swept.zero_()
        torch.cuda._sleep(self._pause)
        return self._between_events(run)

    def peak_memory(self, run: Run) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _between_events(self, run: Run) -> float:
        self._begin.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end)


def clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()
