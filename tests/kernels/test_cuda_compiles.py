"""The CUDA kernels of the extension compiled for every GPU they may meet, with no GPU at hand: nothing spills.

CUDA 13 builds for no GPU older than sm_75, so Volta's code is compiled by NVRTC 12, from the device code alone.
"""

import ctypes
import importlib.util
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import tamt_kernels as tk

CUDA = Path(tk.__file__).parents[1] / "csrc" / "cuda"
TYPES = ("float", "__half", "__nv_bfloat16")
KERNELS = {
    "ste_backward_device.cuh": [
        "tamt::sum_up",
        *(f"tamt::ste_backward<{', '.join(types)}>" for types in itertools.product(TYPES, repeat=3)),
    ],
}


def cuobjdump(*arguments):
    """NVIDIA's own, which Triton brings along."""
    triton = pytest.importorskip("triton")
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def spilling(binary):
    """How many kernels a file has for each GPU that it names, and those that spill registers to memory."""
    counts, found = {}, []
    # A library has a heading for each GPU before what its kernels use; code of one GPU alone has none.
    listed = cuobjdump("-res-usage", binary)
    for heading, listing in re.findall(r"(.*?)Resource usage:\n(.*?)(?=\nFatbin|\Z)", listed, re.DOTALL):
        gpu = next(iter(re.findall(r"arch = (sm_\d+)", heading)), "")
        usage = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) .*?LOCAL:(\d+)", listing)
        counts[gpu] = counts.get(gpu, 0) + len(usage)
        found += [(gpu, name) for name, stack, local in usage if int(stack) or int(local)]
    return counts, found


def installed(package):
    spec = importlib.util.find_spec(f"nvidia.{package}") if importlib.util.find_spec("nvidia") else None
    if spec is None:
        pytest.skip(f"nvidia-{package.replace('_', '-')}-cu12 is not installed")
    return Path(spec.submodule_search_locations[0])


def nvrtc_compile(header, names, gpu):
    """The machine code of the kernels of a header, by NVRTC."""
    nvrtc = ctypes.CDLL(str(installed("cuda_nvrtc") / "lib" / "libnvrtc.so.12"))
    program = ctypes.c_void_p()
    source = f'#include "{header}"\n'.encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None) == 0
    for name in names:
        assert nvrtc.nvrtcAddNameExpression(program, name.encode()) == 0
    flags = [f"-arch={gpu}", "-std=c++17", f"-I{CUDA}", f"-I{installed('cuda_runtime') / 'include'}"]
    result = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert result == 0, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


def test_all_device_code_is_compiled_here():
    assert {path.name for path in CUDA.glob("*.cuh")} == set(KERNELS)


@pytest.mark.parametrize("header", KERNELS)
def test_volta_by_nvrtc(header, tmp_path):
    (tmp_path / "kernels.cubin").write_bytes(nvrtc_compile(header, KERNELS[header], "sm_70"))
    counts, spills = spilling(tmp_path / "kernels.cubin")
    assert counts == {"": len(KERNELS[header])}
    assert spills == []


def test_the_extension_holds_code_for_every_other_gpu():
    """`make test` built it whole with nvcc, if nvcc is there; newer GPUs compile its PTX."""
    extension = pytest.importorskip("tamt_kernels._C")
    if not extension.cuda:
        if torch.version.cuda and shutil.which("nvcc"):
            pytest.skip("the extension was built without its CUDA kernels, although nvcc is there")
        pytest.skip("there is no nvcc, or torch is built without CUDA")
    counts, spills = spilling(extension.__file__)
    assert set(counts.values()) == {sum(len(names) for names in KERNELS.values())}
    assert spills == []
    if len(counts) > 1:  # the GPU suite builds for the GPU that it has alone
        assert set(counts) >= {"sm_75", "sm_80", "sm_90"}
        assert "sm_90.ptx" in cuobjdump("-lptx", extension.__file__)
