"""What Windows and macOS lack is needed for no import. Nothing here runs there: Python is robbed of it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

LACKING = """
import importlib, os, pkgutil, signal, sys, warnings

# They see that this is Linux and need what it has; elsewhere they do without themselves.
import accelerate, datasets, psutil
from transformers import AttentionMaskInterface, AutoModel, PreTrainedModel

warnings.simplefilter("ignore")  # tamt_kernels says that Triton is missing
for name in ("fcntl", "resource", "pwd", "grp", "termios", "triton"):
    sys.modules[name] = None  # an import of it fails
for name in ("SIGTERM", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm"):
    delattr(signal, name)
for name in ("fork", "forkpty", "killpg", "getpgid", "setsid"):
    delattr(os, name)

import tamt, tamt_kernels, benchmarks

for package in (tamt, tamt_kernels, benchmarks):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "triton_kernels" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)

from tamt.cli import main

raise SystemExit(main(["compare", "none.safetensors", "none.safetensors"]))
"""


def test_nothing_that_only_posix_has_is_needed_at_import() -> None:
    result = subprocess.run([sys.executable, "-c", LACKING], cwd=ROOT, capture_output=True, text=True, check=False)
    error = result.stderr.splitlines()[-1]
    assert error.startswith("tamt compare: error: there is no mask file none.safetensors"), result.stderr
    assert result.returncode == 2
    imported = result.stdout.split()
    assert {"tamt.search.train", "tamt_kernels.optim", "benchmarks.clocks"} <= set(imported)
