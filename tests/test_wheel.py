"""What is shipped: an sdist with all that a build needs, and the wheel it builds, which runs where no checkout is.

With TAMT_SOAK=1 (`make soak`) the wheel has the C++ kernels, which take two minutes to compile.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import tamt
from _build_backend import index_page
from tamt.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("tamt", "tamt_kernels")
KERNELS = "cpu" if "TAMT_SOAK" in os.environ else "none"
NOT_SOURCE = (".*", "build", "dist", "demo", "runs", "*.egg-info", "*.so", "__pycache__")

PROBE = """
import json, torch, tamt, tamt_kernels as tk
mask = tk.binarize(torch.tensor([1.0, 3.0]), torch.tensor(2.0), torch.tensor(0)).tolist()
kernels = {found["cpu"] for found in tk.backends().values()}
print(json.dumps([tamt.__file__, tk.__file__, mask, "cpp" in kernels]))
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """The output of a command that must succeed, which knows nothing of this checkout."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TAMT_KERNELS")}
    done = subprocess.run(command, cwd=cwd, env=inherited | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def build(kind: str, source: Path, target: Path, kernels: str) -> Path:
    """An sdist or a wheel of a source, in `target`, by one compiler at a time; `kernels` is TAMT_BUILD."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja's
    command = (sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", target, source)
    run(*command, cwd=source, TAMT_BUILD=kernels, MAX_JOBS="1", PATH=programs)
    (built,) = target.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


def install(wheel: Path, folder: Path) -> Path:
    """The folder of programs of a new environment with the wheel; all it needs besides is that of this environment."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=folder)
    # Only now, or pip would find tamt installed. What an editable install leaves there does nothing from a .pth file.
    (site / "needed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin"


@pytest.mark.skipif(KERNELS == "cpu" and not shutil.which("c++"), reason="there is no C++ compiler")
def test_the_wheel_of_the_sdist_runs_where_no_checkout_is(tmp_path: Path) -> None:
    source, dist, away = tmp_path / "source", tmp_path / "dist", tmp_path / "away"
    away.mkdir()
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    packages = {str(file.relative_to(source)) for package in PACKAGES for file in (source / package).rglob("*.*")}
    csrc = {str(file.relative_to(source)) for file in (source / "csrc").rglob("*.*")}
    needed = {"pyproject.toml", "setup.py", "_build_backend.py", "README.md", "LICENSE"}

    # One that was made for no kernels has the sources of all.
    with tarfile.open(build("sdist", source, dist, "none")) as archive:
        shipped = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have none
        archive.extractall(tmp_path / "unpacked")
    assert shipped >= packages | csrc | needed
    assert {name.partition("/")[0] for name in shipped}.isdisjoint({"tests", "benchmarks", "studies"})

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build("wheel", unpacked, dist, KERNELS)
    packed = set(zipfile.ZipFile(wheel).namelist())
    information = f"tamt-{__version__}.dist-info"
    assert packed >= packages
    assert {name.partition("/")[0] for name in packed} == {*PACKAGES, information}
    extensions = [name for name in packed - packages if not name.startswith(information)]
    assert len(extensions) == (KERNELS == "cpu")
    assert all(name.startswith("tamt_kernels/_C.") for name in extensions)

    metadata = zipfile.ZipFile(wheel).read(f"{information}/METADATA").decode()
    description = metadata.partition("\n\n")[2]
    assert "# TAMT" in description
    assert re.findall(r"\]\((?!https?:|#)", description) == [], "links that lead nowhere on a package index"

    programs = install(wheel, tmp_path / "environment")
    assert run(programs / "tamt", "--version", cwd=away) == f"tamt {__version__}\n"
    assert "usage: tamt export" in run(programs / "tamt", "export", "--help", cwd=away)
    *modules, mask, compiled = json.loads(run(programs / "python", "-c", PROBE, cwd=away))
    assert all(Path(module).is_relative_to(tmp_path / "environment") for module in modules)
    assert mask == [False, True]
    assert compiled == bool(extensions)


@pytest.mark.parametrize(
    ("repository", "shown"),
    [
        (
            "https://host/us/tamt",
            "![a](https://host/us/tamt/raw/HEAD/docs/a.png) [b](https://host/us/tamt/blob/HEAD/B.md#c)",
        ),
        (None, " b"),
    ],
)
def test_links_of_the_readme_lead_to_the_repository_on_a_package_index(repository, shown) -> None:
    kept = "[site](https://site) [below](#below)"
    assert index_page(f"![a](docs/a.png) [b](B.md#c) {kept}", repository) == f"{shown} {kept}"
    both = '<picture>\n<source srcset="docs/dark.png">\n<img src="docs/a.png" alt="a">\n</picture>'
    assert index_page(f"{both} [b](B.md#c) {kept}", repository) == f"{shown} {kept}"


def test_what_is_published_agrees_on_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ == tamt.__version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (paper,) = citation["references"]
    assert paper["url"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_and_issue_forms_ask_for_what_is_there() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {words.split()[0] for words in asked} == {"make"}
    assert all(f"\n{words.split()[1]}: " in makefile for words in asked)
    matrix = jobs["test"]["strategy"]["matrix"]["include"]
    supported = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for entry in matrix:
        assert re.search(r"torch[=>]=2\.7", entry["torch"])
        assert entry["torch"].startswith("torch==2.7") or f'"{entry["torch"]}"' in supported
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir():
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert content.keys() >= {"name", "description", "body"}
