"""Setuptools as the build backend, with the torch that the extension will run with as a requirement of the build.

pip builds in an environment of its own. An extension built there against another torch than the one installed would not
load, so the build asks for exactly the version that is installed where pip runs.
"""

import importlib.metadata
import os
import sysconfig
from typing import Any


def _requirements(*_: Any) -> list[str]:
    requirements = ["setuptools>=77"]
    if os.environ.get("TAMT_BUILD") != "none":
        requirements += ["ninja", _torch()]
    return requirements


def _torch() -> str:
    # sys.path of an isolated build leaves the installed packages out; the interpreter's own folders still name them.
    folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    for distribution in importlib.metadata.distributions(name="torch", path=folders):
        return f"torch=={distribution.version.partition('+')[0]}"
    return "torch>=2.7"


def _hook(name: str) -> Any:
    def hook(*arguments: Any, **options: Any) -> Any:
        from setuptools import build_meta  # only there once the requirements are

        return getattr(build_meta, name)(*arguments, **options)

    return hook


get_requires_for_build_wheel = get_requires_for_build_editable = _requirements
get_requires_for_build_sdist = _hook("get_requires_for_build_sdist")
prepare_metadata_for_build_wheel = _hook("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _hook("prepare_metadata_for_build_editable")
build_wheel = _hook("build_wheel")
build_editable = _hook("build_editable")
build_sdist = _hook("build_sdist")
