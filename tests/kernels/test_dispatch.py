"""What runs, what is said when the extension is missing, and TAMT_KERNELS. Each case is a fresh interpreter."""

import importlib.util

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels.backend import dispatch

from . import fresh

BUILT = importlib.util.find_spec("tamt_kernels._C") is not None

# Put before the import, it makes the extension missing, broken, or one for another torch.
MISSING = "import sys; sys.modules['tamt_kernels._C'] = None\n"
BROKEN = """
import importlib
real = importlib.import_module
def import_module(name, *rest):
    if name == "tamt_kernels._C":
        raise ImportError("undefined symbol: _ZN3c10")
    return real(name, *rest)
importlib.import_module = import_module
"""
FOREIGN = """
import sys, types
sys.modules["tamt_kernels._C"] = types.SimpleNamespace(torch_version="1.2.3", register_kernels=lambda: 1 / 0)
"""
# All but the dense products, of which torch's own may be the fastest.
SHOW = (
    "import tamt_kernels as tk; "
    "print(sorted({each['cpu'] for name, each in tk.backends().items() if not name.startswith('linear')}))"
)


def run(code, kernels=None):
    return fresh.run(code, TAMT_KERNELS=kernels)


def test_backends_names_every_operation():
    assert set(tk.backends()) >= {
        "topk_threshold", "binarize", "pack_mask", "unpack_mask", "mask_weight",
        "masked_linear", "masked_embedding", "ste_backward",
    }  # fmt: skip
    assert all(set(each) == {"cpu", "cuda"} for each in tk.backends().values())


@pytest.mark.skipif(not BUILT, reason="the extension is not built")
@pytest.mark.parametrize("kernels", [None, "cpp"])
def test_the_extension_runs_where_it_is_built(kernels):
    result = run(SHOW, kernels)
    assert result.stdout.strip() == "['cpp']"
    assert "Warning" not in result.stderr


def test_triton_is_not_imported_before_it_is_used():
    result = run(
        "import sys, torch; before = 'triton' in sys.modules; import tamt_kernels; "
        "print(before, 'triton' in sys.modules, 'tamt_kernels.triton_kernels' in sys.modules)"
    )
    before, after, kernels = result.stdout.split()
    assert before == after
    assert kernels == "False"


NO_TRITON = (
    "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *r: n != 'triton' and f(n, *r) or None\n"
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_triton_is_nothing_to_speak_of_without_a_gpu_and_said_at_the_first_use_of_one():
    ask = "; print(tk.backend.dispatch.has_kernel('binarize', 'CUDA'))"
    result = run(NO_TRITON + SHOW.replace("cpu", "cuda") + ask)
    assert "triton" not in result.stdout
    assert "True" in result.stdout  # a kernel that would say it
    assert "Triton" not in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_serves_a_gpu_and_is_forced_under_the_interpreter(monkeypatch):
    assert "triton" in run(SHOW.replace("cpu", "cuda")).stdout
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "triton" in run(SHOW, "triton").stdout


def forget():
    for cached in (dispatch._serves, dispatch.available, dispatch._fastest):
        cached.cache_clear()


def test_a_gpu_that_triton_does_not_serve_is_said_once(monkeypatch, recwarn):
    monkeypatch.setattr(dispatch, "triton_problem", lambda device: "the GPU is sm_60 but must be sm_70 or newer")
    monkeypatch.setattr(dispatch, "_triton_registered", {("binarize", "CPU")})
    monkeypatch.setattr(dispatch, "has_kernel", lambda *where: False)
    forget()
    kernel = dispatch._choosing("binarize")
    arguments = torch.tensor([1.0, 3.0]), torch.tensor(2.0), torch.tensor(0)
    assert kernel(*arguments).tolist() == kernel(*arguments).tolist() == [False, True]
    forget()
    assert [str(each.message) for each in recwarn] == [
        "tamt_kernels runs on plain torch on cpu, because the GPU is sm_60 but must be sm_70 or newer"
    ]


def test_eager_is_forced_without_a_word():
    result = run(SHOW, "eager")
    assert result.stdout.strip() == "['eager']"
    assert "Warning" not in result.stderr


@pytest.mark.parametrize(
    ("preparation", "problem"),
    [(MISSING, "not built"), (BROKEN, "does not load (undefined symbol"), (FOREIGN, "built for torch 1.2.3, not ")],
)
def test_an_extension_that_cannot_serve_is_said_once(preparation, problem):
    result = run(preparation + SHOW)
    assert result.stdout.strip() == "['eager']"
    assert result.stderr.count("UserWarning") == 1
    assert problem in result.stderr
    assert "pip install" in result.stderr


@pytest.mark.parametrize(
    ("preparation", "kernels", "message"),
    [
        (MISSING, "cpp", "TAMT_KERNELS is 'cpp', but its C++ extension is not built"),
        (NO_TRITON, "triton", "TAMT_KERNELS is 'triton', but Triton is not installed"),
        ("import torch; torch.cuda.is_available = lambda: False\n", "triton", "TAMT_KERNELS is 'triton', but"),
        ("", "fast", "TAMT_KERNELS is 'fast' but must be eager, cpp or triton"),
    ],
)
def test_what_cannot_be_forced_is_refused(preparation, kernels, message):
    result = run(preparation + "import tamt_kernels", kernels)
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]
