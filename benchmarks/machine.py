"""What a figure was measured on. Every row of a result names it."""

import datetime
import importlib.metadata
import os
import subprocess
from pathlib import Path

import torch

from tamt.runtime.errors import UserError
from tamt_kernels.backend import choices

ROOT = Path(__file__).parents[1]


def device(name: str) -> torch.device:
    """The device called ``name``, cpu or cuda.

    Raises:
        UserError: there is no GPU that torch can use.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use")
    return torch.device(name)


def describe(device: torch.device) -> dict[str, str]:
    """The machine, the versions and the commit, as the columns of a result."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": choices.cpu_model(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": triton,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def in_words(described: dict[str, str]) -> str:
    """What `describe` says, as the heading of a page."""
    return ", ".join(f"{name} {value}" for name, value in described.items())


def commit() -> str:
    """The commit that is checked out, "-dirty" where files differ from it; TAMT_COMMIT names it where git cannot."""
    if named := os.environ.get("TAMT_COMMIT"):
        return named
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def results_folder(device: torch.device) -> Path:
    """Where results lie by default: one folder for each device."""
    described = describe(device)
    name = described["device"] if device.type == "cuda" else f"cpu {described['cpu']}"
    words = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return ROOT / "benchmarks" / "results" / words
