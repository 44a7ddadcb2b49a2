"""The table of what runs fastest: built in, or as ``python -m tamt_kernels.autotune`` measured it on this machine.

It is kept in ``tamt/kernels.json`` in ``$TAMT_CACHE``, ``$XDG_CACHE_HOME`` or ``~/.cache``: for each device, with the
versions that it was measured with, the backend of each operation and the rows up to which a product masks W as it is
read, by the type of W and its size. What it does not say is as built in.
"""

import functools
import importlib.metadata
import itertools
import json
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Up to this many rows a product waits for W more than for its multiplications, and masking W as it is read should win.
FEW_ROWS = 64

BACKENDS = ("cpp", "triton", "eager", "onednn", "onednn_copies")

# A choice holds for W of up to so many entries, of up to so many, and of more: BERT-base's attention has 0.6 million,
# its FFN 2.4, its word embedding 23, all its matrices at once 108.
SIZES = (2**20, 2**22)

ANY = "any"  # the row of an operation whose types choose alike, or that has only one


def size_class(entries: int) -> int:
    """Which of the choices in a row holds."""
    return (entries > SIZES[0]) + (entries > SIZES[1])


def type_name(dtype: torch.dtype) -> str:
    """What a type's row is called."""
    return str(dtype).removeprefix("torch.")


class Choices(NamedTuple):
    """What was measured on a device, by types and, in each row, by sizes.

    ``backends``: {operation: {type or "any": backends}}. ``few_rows``: {type: rows}.
    """

    backends: dict[str, dict[str, tuple[str, ...]]]
    few_rows: dict[str, tuple[int, ...]]

    def row(self, operation: str, dtype: torch.dtype) -> tuple[str, ...] | None:
        """The backends for a W of this type, by its size class, if they were measured."""
        rows = self.backends.get(operation, {})
        return rows.get(type_name(dtype)) or rows.get(ANY)


NONE = Choices({}, {})


def path() -> Path:
    """The cache file."""
    folder = os.environ.get("TAMT_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "tamt" / "kernels.json"


@functools.cache
def of(device: torch.device) -> Choices:
    """What was measured on a device with these versions, or nothing."""
    no_gpu = device.type == "cuda" and not torch.cuda.is_available()
    return NONE if no_gpu or not path().is_file() else _read().get(name(device), NONE)


def operations_with(backend: str) -> set[str]:
    """The operations that any device in the file runs by a backend at times. Asks no device for its name."""
    return {
        operation
        for choices in _read().values()
        for operation, rows in choices.backends.items()
        if any(backend in row for row in rows.values())
    }


def keep(device: torch.device, choices: Choices) -> None:
    """Write what was measured on a device to the cache file, beside that of others."""
    table = {**_read(), name(device): choices}
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as new:
        json.dump({device_: _written(each) for device_, each in table.items()}, new, indent=1)
    os.replace(new.name, file)  # whole or not at all: another process may read it
    _read.cache_clear()
    of.cache_clear()


@functools.cache
def name(device: torch.device) -> str:
    """What a device is called in the file: its model and the versions that a measurement holds for."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    versions = (f"{package} {_version(package)}" for package in ("torch", "triton", "tamt"))
    return ", ".join((model, *versions))


def cpu_model() -> str:
    """The processor's own name for itself, with its family and model where the system tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            first = dict(_field(line) for line in itertools.takewhile(str.strip, lines))
        # A virtual machine calls CPUs of several generations "AMD EPYC".
        return f"{first['model name']} (family {first['cpu family']} model {first['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _written(choices: Choices) -> dict[str, Any]:
    """A row is one line of the file: "cpp cpp eager"."""

    def lines(rows: dict[str, tuple[Any, ...]]) -> dict[str, str]:
        return {kind: " ".join(map(str, row)) for kind, row in rows.items()}

    backends = {operation: lines(rows) for operation, rows in choices.backends.items()}
    return {"backends": backends, "few_rows": lines(choices.few_rows)}


def _parsed(each: dict[str, Any]) -> Choices:
    def words(line: str) -> list[str]:
        if len(row := line.split()) != len(SIZES) + 1:
            raise ValueError(f"{line!r} is not a choice for each of {len(SIZES) + 1} sizes")
        return row

    def backends(row: str) -> tuple[str, ...]:
        if not all(word in BACKENDS for word in words(row)):
            raise ValueError("a backend is none of " + ", ".join(BACKENDS))
        return tuple(words(row))

    operations = each["backends"].items()
    return Choices(
        {operation: {kind: backends(row) for kind, row in rows.items()} for operation, rows in operations},
        {kind: tuple(map(int, words(row))) for kind, row in each["few_rows"].items()},
    )


@functools.cache
def _read() -> dict[str, Choices]:
    """The whole file; nothing of one that is damaged, which a warning says."""
    try:
        return {device: _parsed(each) for device, each in json.loads(path().read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"tamt_kernels ignores {path()}, which is damaged ({error}); python -m tamt_kernels.autotune writes it",
            stacklevel=2,
        )
        return {}
