"""Which kernel runs an operation: the C++ extension's on a CPU, Triton's on a GPU, else the plain-torch definition.

If the extension has a kernel for the GPU too (``ste_backward``), it takes precedence over Triton's. What
``python -m tamt_kernels.autotune`` measured to be faster for a dtype and size takes precedence over both (``choices``).
The environment variable TAMT_KERNELS=eager|cpp|triton, read at import, forces one. Under ``triton``, an operation that
Triton cannot run on a device runs on plain torch, as on a CPU without Triton's interpreter (TRITON_INTERPRET=1).
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
from tamt_kernels.backend.library import LIBRARY, OPERATORS

INSTALL = "to build it, install tamt again where a C++ compiler is found: pip install --force-reinstall --no-deps ."

OLDEST_TRITON = (3, 3)
# The oldest GPUs, for Triton's kernels and for its matrix products on tensor cores. Triton 3.9 compiles products for
# sm_75 without tensor cores, and they spill.
OLDEST_GPU, OLDEST_GPU_FOR_PRODUCTS = (7, 0), (8, 0)

# For which operators and dispatch keys Triton's kernels are registered.
_triton_registered: set[tuple[str, str]] = set()


def load_extension() -> None:
    """Register the C++ and Triton kernels. Without them everything runs on plain torch, with one warning.

    Raises:
        RuntimeError: TAMT_KERNELS is not eager, cpp or triton, or names a backend that is not available.
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
    """Import the extension. Returns it and "", or None and what is wrong."""
    try:
        extension = importlib.import_module("tamt_kernels._C")
    except ModuleNotFoundError:
        return None, "its C++ extension is not built"
    except ImportError as error:
        return None, f"its C++ extension does not load ({error})"
    # Kernels built for another torch may load and then misread its tensors, so the version is checked first.
    running = torch.__version__.partition("+")[0]
    if extension.torch_version != running:
        return None, f"its C++ extension was built for torch {extension.torch_version}, not {running}"
    return extension, ""


def _register_extension() -> str:
    """Register the extension's kernels. Returns what is wrong, or ""."""
    extension, problem = find_extension()
    if problem:
        return problem
    # The dispatcher calls C++ directly, unless an operation must choose first, which takes 5 to 18 µs per call (Xeon).
    choosing = set() if os.environ.get("TAMT_KERNELS") else choices.operations_with("eager")
    extension.register_kernels(*choosing)
    for name in choosing.intersection(OPERATORS):
        for key in ("CPU", "CUDA"):
            if has_kernel(name, key, "tamt_kernels_cpp"):
                LIBRARY.impl(name, _choosing(name), key)
    return ""


def few_rows(device: torch.device, dtype: torch.dtype) -> tuple[int, ...]:
    """Up to how many rows a product masks W as it is read, by size class of W; 0 if no kernel does so."""
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
    """Why Triton cannot serve a device, or None. Imports Triton."""
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
    """Whether Triton serves a device. If not, one warning says why, unless the machine has no such device."""
    problem = triton_problem(device)
    if problem and (device.type == "cpu" or torch.cuda.is_available()):
        warnings.warn(f"tamt_kernels runs on plain torch on {device}, because {problem}", stacklevel=5)
    return problem is None


def serves_product(device: torch.device) -> bool:
    """Whether Triton's masked matrix products run on a device. On a GPU they need tensor cores."""
    if ("masked_matmul", device.type.upper()) not in _triton_registered or not _serves(device):
        return False
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= OLDEST_GPU_FOR_PRODUCTS


def _register_triton(key: str) -> None:
    for name, operator in OPERATORS.items():
        # The first use warns if Triton is missing: most machines without it have no GPU.
        if operator.triton and not has_kernel(name, key):
            LIBRARY.impl(name, _choosing(name), key)
            _triton_registered.add((name, key))


def _choosing(name: str) -> Callable[..., Any]:
    """A kernel of an operator that calls the kernel of the fastest backend for its arguments."""

    def run(*arguments: Any, **options: Any) -> Any:
        matrix = arguments[OPERATORS[name].matrix]
        first = matrix if isinstance(matrix, Tensor) else matrix[0]
        entries = first.numel() if matrix is first else sum(tensor.numel() for tensor in matrix)
        backend = _fastest(name, first.device, first.dtype)[choices.size_class(entries)]
        # Triton launches on the current device, which may not be the tensors' device.
        with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
            return kernel(name, backend)(*arguments, **options)

    return run


@functools.cache
def _fastest(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The backends of an operator by size class of W: as measured, unless one is forced or not available."""
    usable = available(name, device)
    measured = None if os.environ.get("TAMT_KERNELS") else choices.of(device).row(name, dtype)
    built_in = usable[:1] * (len(choices.SIZES) + 1)
    return tuple(backend if backend in usable else usable[0] for backend in measured or built_in)


@functools.cache
def available(name: str, device: torch.device) -> tuple[str, ...]:
    """The backends that can run an operator on a device. The first one runs if nothing was measured."""
    key = device.type.upper()
    kernels = []
    if has_kernel(name, key, "tamt_kernels_cpp"):
        kernels.append("cpp")
    if (name, key) in _triton_registered and _serves(device):
        kernels.append("triton")
    return (*kernels, "eager")


@functools.cache
def kernel(name: str, backend: str) -> Callable[..., Any]:
    """The function that runs an operator by a backend. Imports Triton kernels only when they are asked for."""
    if backend == "cpp":
        return getattr(torch.ops.tamt_kernels_cpp, name).default
    operator = OPERATORS[name]
    if backend == "triton":
        return getattr(importlib.import_module(str(operator.triton)), name)
    return operator.eager


def has_kernel(operator: str, key: str, library: str = "tamt_kernels") -> bool:
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{operator}", key)
    return has


def backends(dtype: torch.dtype | None = None, entries: int | None = None) -> dict[str, dict[str, str]]:
    """The backends that run: ``{operation: {"cpu": backend, "cuda": backend}}`` with "cpp", "triton" or "eager".

    The float32 products of ``linear`` on a CPU have "eager" (torch's own), "onednn" and "onednn_copies". The first call
    on a machine measures them (``tamt_kernels.backend.product_library``).

    If several backends run, depending on the dtype and size of W, the answer is "cpp or eager"; the arguments select
    one case. ``masked_linear`` is torch's matrix product over ``mask_weight``, so it has the backend of
    ``mask_weight``; for few rows on a GPU it is ``masked_matmul``.

    Args:
        dtype: dtype of W, or of the first tensor if an operation has no W: float32, float16 or bfloat16; default any.
        entries: number of entries of W, or of all matrices together; default any.
    """
    dtypes = FLOAT_TYPES if dtype is None else (dtype,)
    sizes = slice(None) if entries is None else slice(choices.size_class(entries), choices.size_class(entries) + 1)
    gpu = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cuda")

    def chosen(operator: str, device: torch.device) -> set[str]:
        rows = product_library.row if OPERATORS[operator].onednn else _fastest
        backends = {backend for kind in dtypes for backend in rows(operator, device, kind)[sizes]}
        if "eager" in backends and (called := OPERATORS[operator].composed_of):
            backends = backends - {"eager"} | chosen(called, device)
        return backends

    def described(operator: str) -> dict[str, str]:
        devices = {"cpu": torch.device("cpu"), "cuda": gpu}
        return {key: " or ".join(sorted(chosen(operator, device))) for key, device in devices.items()}

    return {operator: described(operator) for operator in OPERATORS} | {"masked_linear": described("mask_weight")}
