"""Builds the extension tamt_kernels._C; everything else about the package is in pyproject.toml.

TAMT_BUILD chooses what is built:
    auto (the default)  the C++ kernels where a compiler is found, and the CUDA kernels where torch is a CUDA build and
                        nvcc is found; a GPU need not be present
    cpu, cuda           the C++ kernels, or those and the CUDA kernels, or an error that says what is missing
    none                nothing: the package runs on plain torch
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup

from _build_backend import long_description

BUILDS = ("auto", "cpu", "cuda", "none")


def find_cuda_home() -> str | None:
    """The folder of the CUDA toolkit: CUDA_HOME, or that of the nvcc on the PATH.

    nvcc itself is asked, because the one on the PATH may be a script that starts the real one elsewhere.
    """
    if home := os.environ.get("CUDA_HOME"):
        return home if Path(home, "bin", "nvcc").exists() else None
    if nvcc := shutil.which("nvcc"):
        plan = subprocess.run([nvcc, "--dryrun", "-v", "any.cu"], capture_output=True, text=True, check=False)
        if top := re.search(r"^#\$ TOP=(.+)$", plan.stdout + plan.stderr, re.MULTILINE):
            return str(Path(top[1].strip()).resolve())
    return None


def compiler_problem(compiler: str) -> str:
    """Why a compiler cannot build the extension; nothing if it can."""
    if sys.platform == "win32":
        return "the kernels are written for GCC and Clang, not for MSVC"
    if not shutil.which(compiler.split()[0]):
        return f"no C++ compiler ({compiler}) is found"
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=False).stdout
    if sys.platform == "linux" and "clang" in version:
        # torch brings GCC's OpenMP; clang calls another, and does not know the AVX-512 kernels' vector width.
        return f"no g++ is found ({compiler} is clang)"
    return ""


def extension() -> dict[str, Any]:
    """The arguments of ``setup`` that build what TAMT_BUILD asks for."""
    build = os.environ.get("TAMT_BUILD", "auto")
    if build not in BUILDS:
        sys.exit(f"TAMT_BUILD is {build!r} but must be one of {', '.join(BUILDS)}")
    if build == "none":
        return {}
    if missing := compiler_problem(os.environ.get("CXX") or "c++"):
        if build != "auto":
            sys.exit(f"TAMT_BUILD={build}, but {missing}")
        print(f"tamt: {missing}: the package is installed without its extension and runs on plain torch")
        return {}
    cuda_home = find_cuda_home()
    if cuda_home:
        os.environ["CUDA_HOME"] = cuda_home  # torch.utils.cpp_extension reads it on import

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    missing = "" if torch.version.cuda else "torch is built without CUDA"
    missing = missing or ("" if cuda_home else "no nvcc is found (set CUDA_HOME to the folder of the CUDA toolkit)")
    if build == "cuda" and missing:
        sys.exit(f"TAMT_BUILD=cuda, but {missing}")
    with_cuda = build != "cpu" and not missing
    print(f"tamt: building the C++ kernels {'and the CUDA kernels' if with_cuda else 'only'}")

    sources = ["csrc/module.cpp", "csrc/autograd.cpp", *sorted(glob("csrc/cpu/*.cpp"))]
    macros = [("TAMT_TORCH_VERSION", f'"{torch.__version__.partition("+")[0]}"')]
    if with_cuda:
        sources += sorted([*glob("csrc/cuda/*.cpp"), *glob("csrc/cuda/*.cu")])
        macros.append(("TAMT_WITH_CUDA", "1"))
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(torch.version.cuda))
    # Without it at::parallel_for is a plain loop on one thread. Compiled with, not linked with: the OpenMP library that
    # torch brings, whose threads torch.set_num_threads counts, is to be the only one.
    threads = ["-fopenmp"] if sys.platform == "linux" else []
    # Some compilers bring their libstdc++ as an archive. Half of it would give way to torch's, and an exception then
    # ends the process: seen with GCC 14, and on a machine with an H100.
    link = ["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []
    untried = build == "auto" and sys.platform != "linux"  # so it must not keep the package from being installed
    kind = CUDAExtension if with_cuda else CppExtension
    return {
        "ext_modules": [
            kind(
                "tamt_kernels._C",
                sources,
                define_macros=macros,
                depends=sorted(glob("csrc/**/*.*h", recursive=True)),
                extra_compile_args={
                    # No code here looks at floating-point traps, which would keep loops that choose between two
                    # roundings from being vectorised: 13 ms in place of 2 for 3072 x 768 entries to float16. A product
                    # and a sum are rounded apart, as the definitions do.
                    "cxx": ["-O3", "-g0", "-fvisibility=hidden", "-fno-trapping-math", "-ffp-contract=off", *threads],
                    "nvcc": ["-O3", "--threads", "2"],
                },
                extra_link_args=link,
            )
        ],
        "cmdclass": {"build_ext": or_none(BuildExtension) if untried else BuildExtension},
    }


def or_none(command: type) -> type:
    """The command that builds the extension, but where it fails, the package is installed without."""

    class BuildOrNone(command):  # type: ignore[misc, valid-type]
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # a compiler's, ninja's or torch's
                print(f"tamt: the extension could not be built ({error}): the package runs on plain torch without it")
                self.extensions = []

    return BuildOrNone


def default_architectures(cuda: str) -> str:
    """From Turing on, and Volta where CUDA still has it; newer GPUs compile the PTX at first use."""
    return "7.5;8.0;9.0+PTX" if int(cuda.partition(".")[0]) >= 13 else "7.0;7.5;8.0;9.0+PTX"


setup(long_description=long_description(), long_description_content_type="text/markdown", **extension())
