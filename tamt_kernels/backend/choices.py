"""The table of the fastest backends that ``python -m tamt_kernels.autotune`` measured on this machine.

It is stored in ``tamt/kernels.json`` in ``$TAMT_CACHE``, ``$XDG_CACHE_HOME`` or ``~/.cache``. For each device and the
versions it was measured with, it has the backend of each operation, and the number of rows up to which a product masks
W as it is read, by dtype and size of W, and the sparsity from which sparse products are faster than dense ones.
Entries that are missing have their built-in values.
"""

import functools
import importlib.metadata
import itertools
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Built-in number of rows up to which a product masks W as it is read: it then waits for W, not for its multiplications.
FEW_ROWS = 64

BACKENDS = ("cpp", "triton", "eager", "onednn", "onednn_copies")

# Size classes of W: up to 2^20 entries, up to 2^22, and more. In BERT-base an attention matrix has 0.6 million entries,
# an FFN matrix 2.4, the word embedding 23, and all matrices together 108.
SIZES = (2**20, 2**22)

ANY = "any"  # the row of an operation for which all dtypes have the same choices


def size_class(entries: int) -> int:
    """The position in a row of the choice for a W with this number of entries."""
    return (entries > SIZES[0]) + (entries > SIZES[1])


def type_name(dtype: torch.dtype) -> str:
    """The name of a dtype's row."""
    return str(dtype).removeprefix("torch.")


class Choices(NamedTuple):
    """What was measured on a device. Each row has one entry per size class.

    ``backends``: {operation: {dtype or "any": backends}}. ``few_rows``: {dtype: numbers of rows}. ``break_even``:
    {dtype: sparsity}, for any size.
    """

    backends: dict[str, dict[str, tuple[str, ...]]]
    few_rows: dict[str, tuple[int, ...]]
    break_even: dict[str, float]

    def row(self, operation: str, dtype: torch.dtype) -> tuple[str, ...] | None:
        """The measured backends for a W of this dtype, by size class, or None."""
        rows = self.backends.get(operation, {})
        return rows.get(type_name(dtype)) or rows.get(ANY)


NONE = Choices({}, {}, {})


def path() -> Path:
    """The cache file."""
    folder = os.environ.get("TAMT_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "tamt" / "kernels.json"


@functools.cache
def of(device: torch.device) -> Choices:
    """What was measured on a device with these versions; ``NONE`` if nothing was."""
    no_gpu = device.type == "cuda" and not torch.cuda.is_available()
    return NONE if no_gpu else _read().get(name(device), NONE)


def operations_with(backend: str) -> set[str]:
    """The operations for which the file names a backend, on any device. Does not query the devices."""
    return {
        operation
        for choices in _read().values()
        for operation, rows in choices.backends.items()
        if any(backend in row for row in rows.values())
    }


def keep(device: torch.device, choices: Choices) -> None:
    """Write what was measured on a device to the cache file, and keep the entries of other devices."""
    table = {**_read(), name(device): choices}
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")  # with the permissions of any file, unlike a temporary one
    new.write_text(json.dumps({name: _written(choices) for name, choices in table.items()}, indent=1), encoding="utf-8")
    os.replace(new, file)  # at once, because another process may read it
    _read.cache_clear()
    of.cache_clear()


@functools.cache
def name(device: torch.device) -> str:
    """The name of a device in the file: its model, and the versions for which a measurement is valid."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    versions = (f"{package} {_version(package)}" for package in ("torch", "triton", "tamt"))
    return ", ".join((model, *versions))


def cpu_model() -> str:
    """The processor's own name, with its family and model if the system gives them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            first = dict(_field(line) for line in itertools.takewhile(str.strip, lines))
        # Virtual machines give CPUs of several generations the same name, "AMD EPYC".
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
    """The choices as the file has them, with one line per row: "cpp cpp eager"."""

    def lines(rows: dict[str, tuple[Any, ...]]) -> dict[str, str]:
        return {kind: " ".join(map(str, row)) for kind, row in rows.items()}

    backends = {operation: lines(rows) for operation, rows in choices.backends.items()}
    return {"backends": backends, "few_rows": lines(choices.few_rows), "break_even": choices.break_even}


def _parsed(written: dict[str, Any]) -> Choices:
    def words(line: str) -> list[str]:
        if len(row := line.split()) != len(SIZES) + 1:
            raise ValueError(f"{line!r} does not have {len(SIZES) + 1} choices, one for each size")
        return row

    def backends(row: str) -> tuple[str, ...]:
        if not all(word in BACKENDS for word in words(row)):
            raise ValueError("a backend is not one of " + ", ".join(BACKENDS))
        return tuple(words(row))

    def share(sparsity: float) -> float:
        if not 0 <= sparsity <= 1:
            raise ValueError(f"{sparsity} is no sparsity")
        return sparsity

    operations = written["backends"].items()
    return Choices(
        {operation: {kind: backends(row) for kind, row in rows.items()} for operation, rows in operations},
        {kind: tuple(map(int, words(row))) for kind, row in written["few_rows"].items()},
        {kind: share(sparsity) for kind, sparsity in written.get("break_even", {}).items()},
    )


@functools.cache
def _read() -> dict[str, Choices]:
    """The whole file; empty if there is none to read. A damaged file is ignored with a warning."""
    try:
        return {name: _parsed(row) for name, row in json.loads(path().read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"tamt_kernels ignores {path()}, which is damaged ({error}); to write it anew, run "
            "python -m tamt_kernels.autotune",
            stacklevel=2,
        )
        return {}
