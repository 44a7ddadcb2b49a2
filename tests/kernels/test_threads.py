"""The CPU kernels run on torch's threads, as many as torch.set_num_threads says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tamt_kernels as tk

ROOT = Path(tk.__file__).parents[1]

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
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TAMT_KERNELS": "cpp"}
    found = subprocess.run([sys.executable, "-c", COUNT_THREADS], env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["2", "0"], found.stderr
