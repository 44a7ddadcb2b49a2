"""Setuptools as the build backend, with the torch that the extension will run with as a requirement of the build.

pip builds in an environment of its own. An extension built there against another torch than the one installed would not
load, so the build asks for exactly the version that is installed where pip runs.
"""

import importlib.metadata
import os
import sysconfig
from typing import Any

_SETUPTOOLS = "setuptools>=77"


def _requirements(*_: Any) -> list[str]:
    if os.environ.get("TAMT_BUILD") == "none":
        return [_SETUPTOOLS]
    version, _, _ = _installed_torch().partition("+")
    return [_SETUPTOOLS, "ninja", f"torch=={version}" if version else "torch>=2.7"]


def _installed_torch() -> str:
    """Its version, or nothing."""
    # sys.path of an isolated build leaves the installed packages out; the interpreter's own folders still name them.
    folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    for distribution in importlib.metadata.distributions(name="torch", path=folders):
        return distribution.version
    return ""


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
