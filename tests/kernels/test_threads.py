"""The CPU kernels run on torch's threads, as many as torch.set_num_threads says."""

import importlib.util
from pathlib import Path

import pytest

from . import fresh

# In a fresh process, as threads once started stay. The second count is after an operation of torch's own; torch.ones
# would be one already.
COUNT_THREADS = """
import os, torch, tamt_kernels as tk
torch.set_num_threads(3)
weight = torch.empty(1 << 20)
before = len(os.listdir("/proc/self/task"))
tk.ste_backward(weight, weight)
ours = len(os.listdir("/proc/self/task"))
weight * weight
print(ours - before, len(os.listdir("/proc/self/task")) - ours)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's threads")
@pytest.mark.skipif(importlib.util.find_spec("tamt_kernels._C") is None, reason="the extension is not built")
def test_the_extension_runs_on_the_threads_of_torch():
    found = fresh.run(COUNT_THREADS, TAMT_KERNELS="cpp")
    assert found.stdout.split() == ["2", "0"], found.stderr
