"""Nothing here runs without a GPU. `make gpu-suite` runs it on a machine that has one."""

import pytest
import torch


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
