"""What setup.py and the build backend decide, without building anything."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def setup(tmp_path, **environment):
    """Run setup.py as far as its choice of an extension, with no program on the PATH."""
    environment = {"PATH": str(tmp_path), "CUDA_HOME": "", "CXX": "", "HOME": str(tmp_path)} | environment
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name"],
        cwd=ROOT,
        env={**{name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TAMT_BUILD": "gpu"}, "TAMT_BUILD is 'gpu' but must be one of auto, cpu, cuda, none"),
        ({"TAMT_BUILD": "cpu", "CXX": "no-such-compiler"}, "TAMT_BUILD=cpu, but no C++ compiler (no-such-compiler)"),
        ({"TAMT_BUILD": "cuda", "CXX": sys.executable}, "TAMT_BUILD=cuda, but "),
    ],
)
def test_a_build_that_cannot_be_made_fails_in_one_line(tmp_path, environment, message):
    result = setup(tmp_path, **environment)
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]


def test_a_machine_with_no_compiler_installs_and_is_told(tmp_path):
    result = setup(tmp_path, CXX="no-such-compiler")
    assert result.returncode == 0
    assert "no C++ compiler (no-such-compiler) is found" in result.stdout


def test_nothing_is_asked_for_where_nothing_is_built(tmp_path):
    result = setup(tmp_path, TAMT_BUILD="none")
    assert result.returncode == 0
    assert "compiler" not in result.stdout


def backend():
    spec = importlib.util.spec_from_file_location("_build_backend", ROOT / "_build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_the_build_asks_for_the_torch_that_is_installed(monkeypatch, hook):
    monkeypatch.setenv("TAMT_BUILD", "auto")
    requirements = getattr(backend(), hook)(None)
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    monkeypatch.setenv("TAMT_BUILD", "none")
    assert not any(each.startswith("torch") for each in getattr(backend(), hook)(None))


def test_the_build_takes_any_torch_where_none_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("TAMT_BUILD", "auto")
    module = backend()
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "torch>=2.7" in module.get_requires_for_build_wheel(None)
