"""Runs the tests of the Triton kernels under the interpreter, in a process that has it from the start."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def version(package):
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


# Parts of about the same length, for two processes to share. The longest tests are left to TAMT_SOAK=1 (`make soak`).
SOME = "window or sample or thresholds or ties"


@pytest.mark.parametrize("some", [SOME, f"not ({SOME})"])
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_under_the_interpreter(some):
    if version("triton") < (3, 7) and version("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.7 counts no loop with numpy 2.4")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TAMT_KERNELS": "triton", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernels/interpreted.py", "-k", some]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
