"""The states of all random number generators, which a checkpoint holds."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """The states of the global generators of torch, of each GPU, Python and NumPy, as plain values and tensors."""
    numpy = np.random.get_state()
    assert isinstance(numpy, tuple)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (numpy[0], numpy[1].tolist(), *numpy[2:]),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Restore what `generator_states` returned, for as many GPUs as there are now."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
