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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere clang is the compiler")
def test_clang_is_told_from_gcc(tmp_path):
    clang = tmp_path / "c++"
    clang.write_text("#!/bin/sh\necho Some clang version 18.1.8\n")
    clang.chmod(0o755)
    result = setup(tmp_path, CXX=str(clang))
    assert result.returncode == 0
    assert f"no g++ is found ({clang} is clang): the package is installed without its extension" in result.stdout


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


def test_sources_are_packed_without_torch(monkeypatch):
    monkeypatch.setenv("TAMT_BUILD", "auto")
    assert backend().get_requires_for_build_sdist(None) == ["setuptools>=77"]


@pytest.mark.parametrize(
    ("hook", "version", "kernels"),
    [
        ("build_sdist", "2.11.0", "none"),
        ("build_wheel", "2.11.0+cpu", "cpu"),
        ("build_wheel", "2.11.0", None),
    ],
)
def test_a_build_links_what_the_installed_torch_has(monkeypatch, hook, version, kernels):
    monkeypatch.setenv("TAMT_BUILD", "")
    monkeypatch.delenv("TAMT_BUILD")
    module, built = backend(), []
    monkeypatch.setattr(module, "_installed_torch", lambda: version)
    monkeypatch.setattr(f"setuptools.build_meta.{hook}", lambda: built.append(os.environ.get("TAMT_BUILD")))
    getattr(module, hook)()
    assert built == [kernels]
