"""Tiny models are fastest on one thread: two would wait for each other at every operation."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
