"""The instruction set in which products are computed, on both sides of a comparison."""

import os

from tamt.runtime.errors import UserError
from tamt_kernels.backend import dispatch


def limit(name: str) -> None:
    """Use no newer instruction set than this one, as if the CPU had none. Before the first product of the process:
    oneDNN, MKL and torch look at their variables once.

    Raises:
        UserError: the kernels are not built, or not for such a CPU.
    """
    extension, problem = dispatch.find_extension()
    if problem or name not in extension.instruction_sets():
        raise UserError(f"--instructions {name} cannot be used: {problem or 'this CPU does not have it'}")
    extension.use_instruction_set(name)
    for variable in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY"):
        os.environ[variable] = name if variable == "ATEN_CPU_CAPABILITY" else name.upper()


def limited() -> bool:
    """Whether the CPU has a newer instruction set than the one in use. ONNX Runtime would take it all the same."""
    extension, problem = dispatch.find_extension()
    return not problem and extension.instruction_set() != extension.instruction_sets()[-1]


def used() -> str:
    """What the kernels run in: generic, avx2 or avx512, or "eager" where they are not built."""
    extension, problem = dispatch.find_extension()
    name: str = "eager" if problem else extension.instruction_set()
    return name
