"""What setup.py and the build backend decide, without building anything."""

import importlib.util
import os
import runpy
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


def test_on_windows_nothing_is_built_and_the_install_goes_on(monkeypatch):
    code = "import runpy, setuptools, sys; sys.platform, sys.argv = 'win32', ['setup.py', '--quiet', '--name']; "
    result = subprocess.run(
        [sys.executable, "-c", code + "runpy.run_path('setup.py')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert "not for MSVC: the package is installed without its extension and runs on plain torch" in result.stdout
    monkeypatch.setattr(sys, "platform", "win32")
    assert backend().get_requires_for_build_wheel(None) == ["setuptools>=77"]


def test_a_build_that_fails_elsewhere_than_on_linux_leaves_the_extension_out(monkeypatch, capsys):
    monkeypatch.setenv("TAMT_BUILD", "none")
    monkeypatch.setattr(sys, "argv", ["setup.py", "--quiet", "--name"])
    monkeypatch.chdir(ROOT)
    or_none = runpy.run_path("setup.py")["or_none"]

    class Failing:
        extensions = ("tamt_kernels._C",)

        def run(self):
            raise RuntimeError("error: no member named 'bits'")

    command = or_none(Failing)()
    command.run()
    assert command.extensions == []
    assert "could not be built (error: no member named 'bits'): the package runs on plain" in capsys.readouterr().out


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


@pytest.fixture
def python(monkeypatch, tmp_path):
    """A backend whose Python has packages in `own`, `user` and `below`, and is a virtual environment that is closed."""
    monkeypatch.setenv("TAMT_BUILD", "auto")
    module = backend()
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path / "own"))
    monkeypatch.setattr(module.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(module.site, "getsitepackages", lambda prefixes: [str(tmp_path / "below")])
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    return module


def install_torch(folder, version):
    (folder / f"torch-{version}.dist-info").mkdir(parents=True)
    (folder / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")


def supported_torch():
    dependencies = (ROOT / "pyproject.toml").read_text().splitlines()
    return next(line.strip(' ",') for line in dependencies if line.strip().startswith('"torch>='))


def test_the_build_takes_a_torch_that_the_package_takes_where_none_is_installed(python):
    assert supported_torch() in python.get_requires_for_build_wheel(None)


@pytest.mark.parametrize("folder", ["own", "user", "below"])
@pytest.mark.parametrize("kind", ["closed", "open", "none"])
def test_the_build_finds_torch_wherever_the_interpreter_does(python, tmp_path, folder, kind):
    install_torch(tmp_path / folder, "2.9.1+cpu")
    if kind == "none":
        (tmp_path / "pyvenv.cfg").unlink()
    if kind == "open":
        (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    seen = folder == "own" or kind != "closed"
    assert ("torch==2.9.1" if seen else supported_torch()) in python.get_requires_for_build_wheel(None)


def test_of_two_torches_the_build_takes_the_one_that_is_imported(python, tmp_path):
    install_torch(tmp_path / "own", "2.9.1")
    install_torch(tmp_path / "below", "2.8.0")
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert "torch==2.9.1" in python.get_requires_for_build_wheel(None)


@pytest.mark.parametrize("version", ["2.6.0", "2.16.0", "3.0.0"])
def test_a_torch_that_the_package_will_replace_is_not_built_for(python, tmp_path, version):
    install_torch(tmp_path / "own", version)
    assert supported_torch() in python.get_requires_for_build_wheel(None)


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
