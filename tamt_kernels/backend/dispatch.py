"""Which kernel runs an operation: on a CPU the C++ extension's, on a GPU Triton's, else the plain-torch definition.

Where the extension has a kernel for the GPU too (``ste_backward``), it goes before Triton's. What
``python -m tamt_kernels.autotune`` found to be faster on a device, for a type and size, goes before both (``choices``).
The environment variable TAMT_KERNELS=eager|cpp|triton, read at import, forces one; under ``triton`` an operation that
Triton cannot run there, as on a CPU without Triton's interpreter (TRITON_INTERPRET=1), runs on plain torch.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tamt_kernels.backend import choices, product_library
from tamt_kernels.backend.checks import FLOAT_TYPES
from tamt_kernels.backend.library import COMPOSED, EAGER, LIBRARY, MATRIX, ONEDNN, OPERATORS, TRITON

INSTALL = "to build it, install tamt again where a C++ compiler is found: pip install --force-reinstall --no-deps ."

OLDEST_TRITON = (3, 3)
# The oldest GPUs: of Triton itself, and of its matrix products on tensor cores. What 3.9 compiles for sm_75 has no
# instruction of theirs either, and spills.
OLDEST_GPU, OLDEST_GPU_FOR_PRODUCTS = (7, 0), (8, 0)

# Where Triton's kernels were put in place: (operator, dispatch key).
_triton_registered: set[tuple[str, str]] = set()


def load_extension() -> None:
    """Put the C++ and Triton kernels in place. Without them all still runs, slower, which a warning says once.

    Raises:
        RuntimeError: TAMT_KERNELS is not eager, cpp or triton, or names what is not there.
    """
    forced = os.environ.get("TAMT_KERNELS", "")
    if forced not in ("", "eager", "cpp", "triton"):
        raise RuntimeError(f"TAMT_KERNELS is {forced!r} but must be eager, cpp or triton, or unset")
    if forced == "eager":
        return
    if forced == "triton":
        if problem := _why_triton_cannot_be_forced():
            raise RuntimeError(f"TAMT_KERNELS is 'triton', but {problem}")
        _register_triton("CUDA")
        if interpreted():
            _register_triton("CPU")
        return
    if problem := _register_extension():
        if forced == "cpp":
            raise RuntimeError(f"TAMT_KERNELS is 'cpp', but {problem}; {INSTALL}")
        warnings.warn(f"tamt_kernels runs on plain torch, because {problem}; {INSTALL}", stacklevel=3)
    if not forced:
        _register_triton("CUDA")


def find_extension() -> tuple[Any, str]:
    """Import the extension; return it and nothing, or None and what is wrong."""
    try:
        extension = importlib.import_module("tamt_kernels._C")
    except ModuleNotFoundError:
        return None, "its C++ extension is not built"
    except ImportError as error:
        return None, f"its C++ extension does not load ({error})"
    # Kernels built for another torch could load and then misread its tensors, so the version is asked before
    # they are registered.
    running = torch.__version__.partition("+")[0]
    if extension.torch_version != running:
        return None, f"its C++ extension was built for torch {extension.torch_version}, not {running}"
    return extension, ""


def _register_extension() -> str:
    """Register the extension's kernels; return what is wrong, if anything."""
    extension, problem = find_extension()
    if problem:
        return problem
    # The dispatcher goes straight to C++ but where a choice has to be made first: that took 5 to 18 µs of a
    # call of 19 to 26, on a busy Xeon.
    choosing = set() if os.environ.get("TAMT_KERNELS") else choices.operations_with("eager")
    extension.register_kernels(*choosing)
    for name in choosing.intersection(OPERATORS):
        for key in ("CPU", "CUDA"):
            if has_kernel(name, key, "tamt_kernels_cpp"):
                LIBRARY.impl(name, _choosing(name), key)
    return ""


def few_rows(device: torch.device, dtype: torch.dtype) -> tuple[int, ...]:
    """Up to how many rows a product masks W as it is read, by its size class: 0 where no kernel does so."""
    built_in = (choices.FEW_ROWS if serves_product(device) else 0,) * (len(choices.SIZES) + 1)
    if not any(built_in) or os.environ.get("TAMT_KERNELS"):
        return built_in
    return choices.of(device).few_rows.get(choices.type_name(dtype), built_in)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_triton_cannot_be_forced() -> str | None:
    if (problem := triton_problem(torch.device("cpu"))) or interpreted():
        return problem
    if not torch.cuda.is_available():
        return "there is no GPU; TRITON_INTERPRET=1 runs its kernels on the CPU, slowly"
    return triton_problem(torch.device("cuda", torch.cuda.current_device()))


@functools.cache
def triton_problem(device: torch.device) -> str | None:
    """What keeps Triton from serving a device, if anything. Imports Triton."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'triton>=3.3'"
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        return f"Triton is {triton.__version__} but must be 3.3 or newer"
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    if (capability := torch.cuda.get_device_capability(device)) < OLDEST_GPU:
        return f"the GPU is sm_{capability[0]}{capability[1]} but must be sm_70 or newer"
    return None


@functools.cache
def _serves(device: torch.device) -> bool:
    """Whether Triton serves a device; if not, a warning says why, once, unless there is no such device anyway."""
    problem = triton_problem(device)
    if problem and (device.type == "cpu" or torch.cuda.is_available()):
        warnings.warn(f"tamt_kernels runs on plain torch on {device}, because {problem}", stacklevel=5)
    return problem is None


def serves_product(device: torch.device) -> bool:
    """Whether Triton's masked matrix products run on a device: on tensor cores, or not at all."""
    if ("masked_matmul", device.type.upper()) not in _triton_registered or not _serves(device):
        return False
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= OLDEST_GPU_FOR_PRODUCTS


def _register_triton(key: str) -> None:
    for name in TRITON:  # if Triton is missing, that is said at the first use: most machines without have no GPU
        if not has_kernel(name, key):
            LIBRARY.impl(name, _choosing(name), key)
            _triton_registered.add((name, key))


def _choosing(name: str) -> Callable[..., Any]:
    """An operator's kernel that starts the one of the backend that its arguments call for."""

    def run(*arguments: Any, **options: Any) -> Any:
        matrix = arguments[MATRIX[name]]
        first = matrix if isinstance(matrix, Tensor) else matrix[0]
        entries = first.numel() if matrix is first else sum(each.numel() for each in matrix)
        backend = _fastest(name, first.device, first.dtype)[choices.size_class(entries)]
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
            return kernel(name, backend)(*arguments, **options)

    return run


@functools.cache
def _fastest(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The backend of an operator by the size class of W: what was measured, unless one is forced or it is not there."""
    there = available(name, device)
    measured = None if os.environ.get("TAMT_KERNELS") else choices.of(device).row(name, dtype)
    built_in = there[:1] * (len(choices.SIZES) + 1)
    return tuple(each if each in there else there[0] for each in measured or built_in)


@functools.cache
def available(name: str, device: torch.device) -> tuple[str, ...]:
    """The backends that can run an operator on a device, that which does where nothing was measured first."""
    key = device.type.upper()
    found = []
    if has_kernel(name, key, "tamt_kernels_cpp"):
        found.append("cpp")
    if (name, key) in _triton_registered and _serves(device):
        found.append("triton")
    return (*found, "eager")


@functools.cache
def kernel(name: str, backend: str) -> Callable[..., Any]:
    """What runs an operator by a backend. Imports the Triton kernels only when they are asked for."""
    if backend == "cpp":
        return getattr(torch.ops.tamt_kernels_cpp, name).default
    if backend == "triton":
        return getattr(importlib.import_module(TRITON[name].module), TRITON[name].launcher)
    return EAGER[name]


def has_kernel(operator: str, key: str, library: str = "tamt_kernels") -> bool:
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{operator}", key)
    return found


def backends(dtype: torch.dtype | None = None, entries: int | None = None) -> dict[str, dict[str, str]]:
    """What really runs: ``{operation: {"cpu": backend, "cuda": backend}}``, a backend "cpp", "triton" or "eager".

    The float32 products of ``linear`` on a CPU have "eager", torch's own, "onednn" and "onednn_copies" to choose from;
    asked for the first time on a machine, they are measured (``tamt_kernels.backend.product_library``).

    Where several run, by the type and size of W, they are told as "cpp or eager"; the arguments ask for one case.
    ``masked_linear`` is torch's matrix product over ``mask_weight``, so it is what ``mask_weight`` is; of few rows on
    a GPU it is ``masked_matmul``.

    Args:
        dtype: of W, or of the first tensor where an operation takes no W: float32, float16 or bfloat16; by default any.
        entries: of it, or of all matrices together; by default any number.
    """
    dtypes = FLOAT_TYPES if dtype is None else (dtype,)
    sizes = slice(None) if entries is None else slice(choices.size_class(entries), choices.size_class(entries) + 1)
    gpu = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cuda")

    def chosen(operator: str, device: torch.device) -> set[str]:
        rows = product_library.row if operator in ONEDNN else _fastest
        found = {backend for each in dtypes for backend in rows(operator, device, each)[sizes]}
        if "eager" in found and operator in COMPOSED:
            found = found - {"eager"} | chosen(COMPOSED[operator], device)
        return found

    def told(operator: str) -> dict[str, str]:
        devices = {"cpu": torch.device("cpu"), "cuda": gpu}
        return {key: " or ".join(sorted(chosen(operator, device))) for key, device in devices.items()}

    return {operator: told(operator) for operator in OPERATORS} | {"masked_linear": told("mask_weight")}
