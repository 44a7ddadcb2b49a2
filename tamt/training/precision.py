"""The arithmetic of a model: float32, or a half-precision type where the device computes faster in one."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.runtime import processes
from tamt.runtime.choices import Precision
from tamt.runtime.console import say
from tamt.runtime.errors import UserError, check_choice
from tamt.training.run_folder import AUTO, processes_of_run, started_with

RunOptions = TypeVar("RunOptions", TrainOptions, FinetuneOptions)

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
VARIABLE = "TAMT_PRECISION"
"""Environment variable with the meaning of "auto", for comparable runs on different machines."""
CPU_FEATURES = ("avx512_bf16", "amx_bf16")
"""Names of the bf16 instructions of x86 CPUs; no other CPU was measured."""


def as_begun(options: RunOptions) -> RunOptions:
    """The options of a run with its precision and its processes per step; on --resume those that it began with."""
    asked = partial(processes_of_run, options.output, options.processes_of_step, options.resume)
    precision = choose_precision(options.precision, options.output, options.resume)
    return replace(options, processes_of_step=processes.by_first(asked), precision=precision)


def choose_precision(asked: Precision, output: Path | None = None, resume: bool = False) -> Precision:
    """The precision of a run: the one asked for, or for "auto" the fastest of the device.

    That is bf16 where the device has instructions for it, else fp16 on a GPU and fp32 on a CPU. If the environment
    variable TAMT_PRECISION is set, it decides. Process 0 decides for all processes. A model that does not run in half
    precision then runs in fp32, see `tamt.training.half_precision.or_in_fp32`.

    Args:
        asked: "auto", "fp32", "bf16" or "fp16".
        output: folder of the run.
        resume: take the precision that the run in `output` began with for "auto".

    Raises:
        UserError: there is no such precision, or TAMT_PRECISION names none.
    """
    check_choice("precision", asked, (AUTO, *DTYPES))
    if asked != AUTO:
        return asked
    return processes.by_first(lambda: (_begun(output) if resume and output else None) or _fastest())


def _begun(output: Path) -> Precision | None:
    """The precision of the run in a folder; None if there is none."""
    return next((name for name in PRECISIONS if started_with(output, "precision") == name), None)


def _fastest() -> Precision:
    named = os.environ.get(VARIABLE)
    if named and named not in DTYPES:
        raise UserError(f"{VARIABLE} is {named!r} but must be one of {', '.join(DTYPES)}, or unset")
    for name in PRECISIONS:
        if name == named:
            return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    if torch.backends.mps.is_available():  # not measured
        return "fp32"
    return "bf16" if cpu_has_bf16() else "fp32"


def report_precision(precision: Precision, asked: Precision) -> None:
    """Log the precision that "auto" chose, and a warning where bf16 is slow."""
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if asked == AUTO:
        why = "has no instructions for bf16" if precision == "fp32" else f"has instructions for {precision}"
        why = f"as {VARIABLE} says" if os.environ.get(VARIABLE) else f"as this {'CPU' if on_cpu else 'GPU'} {why}"
        say(f"precision {precision}, {why} (--precision chooses another; updates are always float32)")
    if precision == "bf16" and on_cpu and not cpu_has_bf16():
        say("bf16 takes about 8 times as long as fp32 on this CPU, which has no instructions for it")


def cpu_has_bf16() -> bool:
    """Whether the CPU has bf16 instructions and this torch uses them: AVX-512 BF16 or AMX."""
    return torch.backends.mkldnn.is_available() and any(feature in _cpu_features() for feature in CPU_FEATURES)


def _cpu_features() -> set[str]:
    if ask := getattr(torch.cpu, "get_capabilities", None):  # not in older torch
        return {name for name, there in ask().items() if there is True}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
