"""The table of what runs fastest: built in, or as ``python -m tamt_kernels.autotune`` measured it on this machine.

It is kept in ``tamt/kernels.json`` in ``$TAMT_CACHE``, ``$XDG_CACHE_HOME`` or ``~/.cache``: for each device, with the
versions that it was measured with, the backend of each operation and the rows up to which a product masks W as it is
read. What it does not say is as built in.
"""

import functools
import importlib.metadata
import json
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

# Up to this many rows a product waits for W more than for its multiplications, so that masking W as it is read wins.
FEW_ROWS = 64

BACKENDS = ("cpp", "triton", "eager")


class Choices(NamedTuple):
    """``backends``: {operation: backend}. ``few_rows``: {"float32", "float16" or "bfloat16": rows}."""

    backends: dict[str, str]
    few_rows: dict[str, int]


def path() -> Path:
    """The cache file."""
    folder = os.environ.get("TAMT_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "tamt" / "kernels.json"


@functools.cache
def of(device: torch.device) -> Choices:
    """What was measured on a device with these versions, or nothing."""
    return _read().get(name(device), Choices({}, {})) if path().is_file() else Choices({}, {})


def keep(device: torch.device, choices: Choices) -> None:
    """Write what was measured on a device to the cache file, beside that of others."""
    table = {**_read(), name(device): choices}
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as new:
        json.dump({device_: each._asdict() for device_, each in table.items()}, new, indent=1)
    os.replace(new.name, file)  # whole or not at all: another process may read it
    _read.cache_clear()
    of.cache_clear()


@functools.cache
def name(device: torch.device) -> str:
    """What a device is called in the file: its model and the versions that a measurement holds for."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()
    versions = (f"{package} {_version(package)}" for package in ("torch", "triton", "tamt"))
    return ", ".join((model, *versions))


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _read() -> dict[str, Choices]:
    """The whole file; nothing of one that is damaged, which a warning says."""
    try:
        table = {device: Choices(**each) for device, each in json.loads(path().read_text(encoding="utf-8")).items()}
        for backends, few_rows in table.values():
            if not all(each in BACKENDS for each in backends.values()):
                raise ValueError("a backend is none of " + ", ".join(BACKENDS))
            if not all(isinstance(rows, int) for rows in few_rows.values()):
                raise ValueError("few_rows are not numbers")
        return table
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"tamt_kernels ignores {path()}, which is damaged ({error}); python -m tamt_kernels.autotune writes it",
            stacklevel=2,
        )
        return {}
