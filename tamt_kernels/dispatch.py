"""Which kernel runs an operation: on a CPU the C++ extension's, on a GPU Triton's, else the plain-torch definition.

Where the extension has a kernel for the GPU too (``ste_backward``), it goes before Triton's. What
``python -m tamt_kernels.autotune`` found to be faster on a device goes before both (``choices``). The environment
variable TAMT_KERNELS=eager|cpp|triton, read at import, forces one; under ``triton`` an operation that Triton
cannot run there, as on a CPU without Triton's interpreter (TRITON_INTERPRET=1), runs on plain torch.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from tamt_kernels import choices
from tamt_kernels.library import COMPOSED, EAGER, LIBRARY, OPERATORS, TRITON

INSTALL = "to build it, install tamt again where a C++ compiler is found: pip install --force-reinstall --no-deps ."

OLDEST_TRITON = (3, 3)
# The oldest GPUs: of Triton itself, and of its matrix products on tensor cores. What 3.9 compiles for sm_75 has no
# instruction of theirs either, and spills.
OLDEST_GPU, OLDEST_GPU_FOR_PRODUCTS = (7, 0), (8, 0)

_extension: Any = None  # once its kernels are in place
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


def _register_extension() -> str | None:
    """Import the extension and register its kernels; return what is wrong, if anything."""
    try:
        extension = importlib.import_module("tamt_kernels._C")
    except ModuleNotFoundError:
        return "its C++ extension is not built"
    except ImportError as error:
        return f"its C++ extension does not load ({error})"
    # Kernels built for another torch could load and then misread its tensors, so the version is asked before
    # they are registered.
    running = torch.__version__.partition("+")[0]
    if extension.torch_version != running:
        return f"its C++ extension was built for torch {extension.torch_version}, not {running}"
    extension.register_kernels(*(name for name in OPERATORS if _chosen(name, torch.device("cpu")) == "eager"))
    global _extension
    _extension = extension
    return None


def register_all() -> None:
    """Put in place the C++ kernels, too, that were found to be slower."""
    if _extension:
        _extension.register_left_out(*(name for name in OPERATORS if not has_kernel(name, "CPU")))


def _chosen(operator: str, device: torch.device) -> str | None:
    """The backend that was measured to be the fastest, if any was, unless one is forced."""
    return None if os.environ.get("TAMT_KERNELS") else choices.of(device).backends.get(operator)


def few_rows(device: torch.device, dtype: torch.dtype) -> int:
    """Up to how many rows a product masks W as it is read: 0 where no kernel does so."""
    if not serves_product(device):
        return 0
    measured = {} if os.environ.get("TAMT_KERNELS") else choices.of(device).few_rows
    return measured.get(str(dtype).removeprefix("torch."), choices.FEW_ROWS)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_triton_cannot_be_forced() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'triton>=3.3'"
    if interpreted():
        return triton_problem(torch.device("cpu"))
    if not torch.cuda.is_available():
        return "there is no GPU; TRITON_INTERPRET=1 runs its kernels on the CPU, slowly"
    return triton_problem(torch.device("cuda", torch.cuda.current_device()))


@functools.cache
def triton_problem(device: torch.device) -> str | None:
    """What keeps Triton from serving a device, if anything. Imports Triton."""
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        return f"Triton is {triton.__version__} but must be 3.3 or newer"
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < OLDEST_GPU:
        return f"the GPU is sm_{capability[0]}{capability[1]} but must be sm_70 or newer"
    return None


@functools.cache
def _serves(device: torch.device) -> bool:
    """Whether Triton serves a device; if not, a warning says why, once."""
    if problem := triton_problem(device):
        warnings.warn(f"tamt_kernels runs on plain torch on {device}, because {problem}", stacklevel=4)
    return problem is None


def serves_product(device: torch.device) -> bool:
    """Whether Triton's masked matrix products run on a device: on tensor cores, or not at all."""
    if ("masked_matmul", device.type.upper()) not in _triton_registered or not _serves(device):
        return False
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= OLDEST_GPU_FOR_PRODUCTS


def _register_triton(key: str) -> None:
    if importlib.util.find_spec("triton") is None:
        return  # said at the first use on a GPU, as most machines without Triton have none
    for name in TRITON:
        if not has_kernel(name, key):
            LIBRARY.impl(name, _launching(name), key)
            _triton_registered.add((name, key))


def _launching(name: str) -> Any:
    """An operator's kernel that looks, when it is first called, whether Triton can serve, and imports it then."""

    def run(*arguments: Any, **options: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        if not _serves(first.device) or _chosen(name, first.device) == "eager":
            return EAGER[name](*arguments, **options)
        launcher = getattr(importlib.import_module(TRITON[name].module), TRITON[name].launcher)
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
            return launcher(*arguments, **options)

    return run


def has_kernel(operator: str, key: str) -> bool:
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"tamt_kernels::{operator}", key)
    return found


def backends() -> dict[str, dict[str, str]]:
    """What really runs: ``{operation: {"cpu": backend, "cuda": backend}}``, a backend "cpp", "triton" or "eager".

    ``masked_linear`` is torch's matrix product over ``mask_weight``, so it is what ``mask_weight`` is; of few
    rows on a GPU it is ``masked_matmul``.
    """

    def backend(operator: str, key: str) -> str:
        if (operator, key) in _triton_registered:
            no_gpu = key == "CUDA" and not torch.cuda.is_available()
            device = torch.device("cpu" if key == "CPU" or no_gpu else f"cuda:{torch.cuda.current_device()}")
            return "eager" if triton_problem(device) or _chosen(operator, device) == "eager" else "triton"
        if has_kernel(operator, key):
            return "cpp"
        return backend(COMPOSED[operator], key) if operator in COMPOSED else "eager"

    found = {operator: {"cpu": backend(operator, "CPU"), "cuda": backend(operator, "CUDA")} for operator in OPERATORS}
    return found | {"masked_linear": found["mask_weight"]}
