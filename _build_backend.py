"""Setuptools as the build backend, with the torch that the extension will run with as a requirement of the build.

pip builds in an environment of its own. An extension built there against another torch than the one installed would not
load, so the build asks for exactly the version that is installed where pip runs.
"""

import importlib.metadata
import os
import re
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

_SETUPTOOLS = "setuptools>=77"
_ROOT = Path(__file__).parent


def _requirements(*_: Any) -> list[str]:
    if os.environ.get("TAMT_BUILD") == "none" or sys.platform == "win32":  # where setup.py builds nothing
        return [_SETUPTOOLS]
    version, _, _ = _installed_torch().partition("+")
    supported = _supported_torch()
    return [_SETUPTOOLS, "ninja", f"torch=={version}" if version and _fits(version, supported) else supported]


def _supported_torch() -> str:
    """The requirement of the package itself, which says what it will be installed with."""
    text = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"(torch>=[\d.]+,<[\d.]+)"', text)
    assert found, "pyproject.toml bounds torch"
    return found[1]


def _fits(version: str, requirement: str) -> bool:
    """Whether pip would keep this version; else the extension would be built for one that the package replaces."""
    least, below = (tuple(map(int, bound.split("."))) for bound in re.findall(r"[<>]=?([\d.]+)", requirement))
    release = tuple(map(int, re.findall(r"\d+", version)[:2]))
    return least <= release < below


def _installed_torch() -> str:
    """Its version, or nothing."""
    for distribution in importlib.metadata.distributions(name="torch", path=_package_folders()):
        return distribution.version
    return ""


def _package_folders() -> list[str]:
    """Where the interpreter that pip runs on finds packages, in its order. An isolated build's sys.path lacks them.

    They are the interpreter's own folders and, but for a virtual environment that is closed, those of the user and of
    the Python below it.
    """
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = Path(sys.prefix, "pyvenv.cfg")
    if environment.is_file():
        settings = environment.read_text(encoding="utf-8").lower()
        if not re.search(r"^include-system-site-packages\s*=\s*true\s*$", settings, re.MULTILINE):
            return own
        return [*own, site.getusersitepackages(), *site.getsitepackages([sys.base_prefix])]
    return [site.getusersitepackages(), *own, *site.getsitepackages([sys.base_prefix])]


def index_page(readme: str, repository: str | None) -> str:
    """The README as the page of the project on a package index, where links within the repository lead nowhere.

    Args:
        readme: the README, in Markdown.
        repository: the address of the repository, to which relative links then lead. Without one pictures are left
            out, and of links the text stays.
    """

    def rewritten(link: re.Match[str]) -> str:
        mark, text, path = link.groups()
        if repository is None:
            return "" if mark else text
        return f"{mark}[{text}]({repository}/{'raw' if mark else 'blob'}/HEAD/{path})"

    # A picture with a version for dark pages becomes its light one.
    one_theme = re.sub(r'<picture>.*?<img src="([^"]*)" alt="([^"]*)">\s*</picture>', r"![\2](\1)", readme, flags=re.S)
    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]*)\)", rewritten, one_theme)


def _repository() -> str | None:
    text = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "([^"]+?)/?"', text, re.MULTILINE)
    return found[1] if found else None


def long_description() -> str:
    """What `setup.py` gives a package index as the description."""
    return index_page((_ROOT / "README.md").read_text(encoding="utf-8"), _repository())


def _hook(name: str) -> Any:
    def hook(*arguments: Any, **options: Any) -> Any:
        from setuptools import build_meta  # only there once the requirements are

        if name.endswith("sdist"):
            os.environ["TAMT_BUILD"] = "none"  # sources need no torch
        elif _installed_torch().endswith("+cpu"):
            # The torch of an isolated build may be a CUDA build, whose libraries that one does not have.
            os.environ.setdefault("TAMT_BUILD", "cpu")
        return getattr(build_meta, name)(*arguments, **options)

    return hook


def get_requires_for_build_sdist(*_: Any) -> list[str]:
    return [_SETUPTOOLS]


get_requires_for_build_wheel = get_requires_for_build_editable = _requirements
prepare_metadata_for_build_wheel = _hook("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _hook("prepare_metadata_for_build_editable")
build_wheel = _hook("build_wheel")
build_editable = _hook("build_editable")
build_sdist = _hook("build_sdist")
