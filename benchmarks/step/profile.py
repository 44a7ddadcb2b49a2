"""Where the time of a step goes, by torch's profiler."""

from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import report
from benchmarks.step.contenders import Step

ROWS = 15
STEPS = 2
BOOKKEEPING = "Optimizer.step#MaskAdamW.step"


class Profile(NamedTuple):
    """``table`` has the operations by their own time; ``bookkeeping`` is the share of ``MaskAdamW.step``."""

    table: str
    bookkeeping: float


def of_step(step: Step, device: torch.device) -> Profile:
    """Profile two steps, on a GPU the time of the device."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            step()
    # On a GPU the kernels are events of their own, beside the operations that hold their times already.
    events = [event for event in found.key_averages() if event.device_type == DeviceType.CPU]
    own = {event.key: _own(event, gpu) for event in events}
    whole = sum(own.values())
    lines = [("operation", "calls", "ms", "share")]
    for event in sorted(events, key=lambda event: -own[event.key])[:ROWS]:
        milliseconds = own[event.key] / STEPS / 1e3
        lines.append((event.key, f"{event.count / STEPS:g}", f"{milliseconds:.1f}", f"{own[event.key] / whole:.1%}"))
    inside = [event.device_time_total if gpu else event.cpu_time_total for event in events if event.key == BOOKKEEPING]
    share = sum(inside) / whole
    lines.append((f"all of {BOOKKEEPING.partition('#')[2]}", "1", f"{sum(inside) / STEPS / 1e3:.1f}", f"{share:.1%}"))
    return Profile(report.table(lines), share)


def _own(event: torch.autograd.profiler_util.FunctionEventAvg, gpu: bool) -> float:
    """Microseconds that an operation took itself, without those that it called."""
    return event.self_device_time_total if gpu else event.self_cpu_time_total
