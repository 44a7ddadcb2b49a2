"""Which kernel runs an operation: the C++ extension's where it has one, else the plain-torch definition.

The environment variable TAMT_KERNELS=eager|cpp|triton, read at import, forces one.
"""

import importlib
import os
import warnings

import torch

from tamt_kernels.library import OPERATORS

INSTALL = "to build it, install tamt again where a C++ compiler is found: pip install --force-reinstall --no-deps ."


def load_extension() -> None:
    """Put the C++ kernels in place. Without them everything still runs, slower, which a warning says once.

    Raises:
        RuntimeError: TAMT_KERNELS is not eager, cpp or triton, or names what is not there.
    """
    forced = os.environ.get("TAMT_KERNELS", "")
    if forced not in ("", "eager", "cpp", "triton"):
        raise RuntimeError(f"TAMT_KERNELS is {forced!r} but must be eager, cpp or triton, or unset")
    if forced == "triton":
        raise RuntimeError("TAMT_KERNELS is 'triton', but tamt_kernels has no Triton kernels yet; use eager or cpp")
    if forced == "eager":
        return
    if problem := _register_extension():
        if forced == "cpp":
            raise RuntimeError(f"TAMT_KERNELS is 'cpp', but {problem}; {INSTALL}")
        warnings.warn(f"tamt_kernels runs on plain torch, because {problem}; {INSTALL}", stacklevel=3)


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
    extension.register_kernels()
    return None


def backends() -> dict[str, dict[str, str]]:
    """What really runs: ``{operation: {"cpu": "cpp" | "eager", "cuda": "cpp" | "eager"}}``.

    ``masked_linear`` is torch's matrix product over ``mask_weight``, so it is what ``mask_weight`` is.
    """

    def backend(operator: str, key: str) -> str:
        registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"tamt_kernels::{operator}", key)
        return "cpp" if registered else "eager"

    found = {operator: {"cpu": backend(operator, "CPU"), "cuda": backend(operator, "CUDA")} for operator in OPERATORS}
    return found | {"masked_linear": found["mask_weight"]}
