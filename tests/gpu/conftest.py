"""Nothing here runs without a GPU. `make gpu-suite` runs it on a machine that has one."""

import importlib.util

import pytest
import torch

from benchmarks.gpu_suite import STEP_NEEDS

# What trains with `tamt` needs what a machine for the kernels need not have.
if not all(map(importlib.util.find_spec, STEP_NEEDS)):
    collect_ignore = ["test_commands.py", "test_step_graph.py"]


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@pytest.fixture
def no_host_sync():
    """Makes it an error to wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
