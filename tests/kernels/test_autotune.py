"""The table of what runs fastest: measured, kept, read at import, ignored where it is damaged."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels import autotune
from tamt_kernels.backend import choices

from . import fresh

SHOW = "import tamt_kernels as tk; found = tk.backends(); print(found['mask_weight']['cpu'], found['binarize']['cpu'])"
CPU = torch.device("cpu")
CPP, EAGER = ("cpp",) * 3, ("eager",) * 3

needs_extension = pytest.mark.skipif(
    importlib.util.find_spec("tamt_kernels._C") is None, reason="the extension is not built"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache file, in a folder of its own."""
    monkeypatch.setenv("TAMT_CACHE", str(tmp_path))
    monkeypatch.delenv("TAMT_KERNELS", raising=False)
    for cached in (choices.of, choices._read):
        cached.cache_clear()
    yield choices.path()
    for cached in (choices.of, choices._read):
        cached.cache_clear()


def keep(few_rows=None, break_even=None, **backends):
    choices.keep(CPU, choices.Choices(backends, few_rows or {}, break_even or {}))


def measure(*arguments, **environment):
    """`python -m tamt_kernels.autotune`."""
    command = f"import runpy, sys; sys.argv[1:] = {arguments}; "
    return fresh.run(command + "runpy.run_module('tamt_kernels.autotune', run_name='__main__')", **environment)


def test_the_cache_file_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("TAMT_CACHE", raising=False)
    assert choices.path() == Path("/xdg/tamt/kernels.json")
    monkeypatch.setenv("TAMT_CACHE", "/own")
    assert choices.path() == Path("/own/tamt/kernels.json")
    monkeypatch.delenv("TAMT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert choices.path() == Path.home() / ".cache" / "tamt" / "kernels.json"


@needs_extension
def test_what_was_measured_runs_unless_another_is_forced(cache):
    keep(mask_weight={"any": EAGER}, binarize={"any": CPP})
    result = fresh.run(SHOW)
    assert result.stdout.split() == ["eager", "cpp"]
    assert "Warning" not in result.stderr
    assert fresh.run(SHOW, TAMT_KERNELS="cpp").stdout.split() == ["cpp", "cpp"]


# Each backend is told apart by what it is asked for: the definition, replaced, says that it ran.
CHOOSING = """
from dataclasses import replace
import torch, tamt_kernels as tk
from torch.library import opcheck
from tamt_kernels.backend import dispatch, library
real, ran = {name: operator.eager for name, operator in library.OPERATORS.items()}, []
def recording(name):
    return lambda *arguments, **options: ran.append(name) or real[name](*arguments, **options)
for name, operator in library.OPERATORS.items():
    library.OPERATORS[name] = replace(operator, eager=recording(name))
def ran_eager(call):
    ran.clear()
    call()
    return bool(ran)
def tensors(n, dtype=torch.float32):
    return torch.ones(n, dtype=dtype), torch.arange(n).float(), torch.tensor(3.0), torch.tensor(2)
SIZES = (9, 2**20, 2**20 + 1, 2**22 + 1)
"""


def chosen(code):
    result = fresh.run(CHOOSING + code)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@needs_extension
def test_the_choice_is_by_the_type_and_size_of_the_weight_and_told_by_backends(cache):
    keep(
        mask_weight={"float32": ("eager", "cpp", "eager"), "float16": ("cpp", "eager", "cpp")},
        topk_threshold={"any": ("cpp", "eager", "eager")},
    )
    found = chosen("""
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    print([ran_eager(lambda: tk.mask_weight(*tensors(n, dtype))) for n in SIZES])
    told = [tk.backends(dtype, n) for n in SIZES]
    assert all(each["masked_linear"] == each["mask_weight"] for each in told)
    print([each["mask_weight"]["cpu"] for each in told])
half = torch.rand(2**19)  # the entries of all matrices together
print([ran_eager(lambda: tk.topk_threshold([half] * n, [1] * n)) for n in (1, 2, 3)])
print(tk.topk_threshold([], []).values.shape)
for arguments in ((), (torch.float32, 2**21), (None, 2**21), (torch.bfloat16,)):
    print([tk.backends(*arguments)[name]["cpu"] for name in ("mask_weight", "topk_threshold", "binarize")])
""")
    assert found == [
        "[True, True, False, True]",
        "['eager', 'eager', 'cpp', 'eager']",
        "[False, False, True, False]",
        "['cpp', 'cpp', 'eager', 'cpp']",
        "[False, False, False, False]",
        "['cpp', 'cpp', 'cpp', 'cpp']",
        "[False, False, True]",
        "torch.Size([0])",
        "['cpp or eager', 'cpp or eager', 'cpp']",
        "['cpp', 'eager', 'cpp']",
        "['cpp or eager', 'eager', 'cpp']",
        "['cpp', 'cpp or eager', 'cpp']",
    ]


@needs_extension
def test_an_operator_that_chooses_is_still_one_in_good_standing(cache):
    keep(mask_weight={"any": ("cpp", "eager", "eager")}, ste_backward_into={"float32": CPP, "float16": EAGER})
    assert chosen("""
weight, score, value, cut = tensors(63)
score.requires_grad_()
opcheck(torch.ops.tamt_kernels.mask_weight.default, (weight, score, value, cut))
into = torch.ops.tamt_kernels.ste_backward_into.default
opcheck(into, (score.detach().clone(), score.detach(), weight.half(), True, True))
compiled = torch.compile(tk.mask_weight, fullgraph=True, backend="aot_eager")
for run in (tk.mask_weight, compiled):
    run(2 * weight, score, value, cut).sum().backward()
    print(score.grad.unique().tolist())
    score.grad = None
""") == ["[2.0]", "[2.0]"]


def test_what_another_device_or_version_measured_does_not_hold(cache, monkeypatch):
    keep(mask_weight={"float16": EAGER})
    assert choices.of(CPU).row("mask_weight", torch.float16) == EAGER
    assert choices.of(CPU).row("mask_weight", torch.float32) is None
    kept = json.loads(cache.read_text(encoding="utf-8"))
    (name,) = kept
    assert kept[name]["backends"] == {"mask_weight": {"float16": "eager eager eager"}}
    assert f"torch {torch.__version__.partition('+')[0]}" in name
    cache.write_text(json.dumps({name.replace("torch 2", "torch 1"): kept[name]}), encoding="utf-8")
    choices._read.cache_clear()
    choices.of.cache_clear()
    assert choices.of(CPU) == choices.NONE
    keep({"float16": (64, 32, 16)})
    assert choices.of(CPU).few_rows == {"float16": (64, 32, 16)}
    assert len(json.loads(cache.read_text(encoding="utf-8"))) == 2  # that of the other is still there


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"cpu": 3}',
        '{"cpu": {"backends": {}}}',
        '{"cpu": {"backends": {"mask_weight": "cpp"}, "few_rows": {}}}',
        '{"cpu": {"backends": {"mask_weight": {"any": "cpp cpp"}}, "few_rows": {}}}',
        '{"cpu": {"backends": {"mask_weight": {"any": "cpp cpp fast"}}, "few_rows": {}}}',
        '{"cpu": {"backends": {}, "few_rows": {"float16": "64 64 many"}}}',
        '{"cpu": {"backends": [], "few_rows": {}}}',
        '{"cpu": {"backends": {}, "few_rows": {}, "break_even": {"float32": "0.3"}}}',
        '{"cpu": {"backends": {}, "few_rows": {}, "break_even": {"float32": 1.5}}}',
    ],
)
def test_a_damaged_file_is_ignored_and_said_once(cache, content):
    cache.parent.mkdir()
    cache.write_text(content, encoding="utf-8")
    with pytest.warns(UserWarning, match="ignores .*kernels.json, which is damaged") as caught:
        assert choices.of(CPU) == choices.of(torch.device("meta")) == choices.NONE
    assert len(caught) == 1


def test_rows_are_those_measured_for_the_type(monkeypatch):
    from tamt_kernels.backend import dispatch

    monkeypatch.delenv("TAMT_KERNELS", raising=False)
    monkeypatch.setattr(choices, "of", lambda device: choices.Choices({}, {"float16": (64, 32, 16)}, {}))
    assert dispatch.few_rows(CPU, torch.float16) == (0, 0, 0)  # nothing here masks W as it is read
    monkeypatch.setattr(dispatch, "serves_product", lambda device: True)
    assert dispatch.few_rows(CPU, torch.float16) == (64, 32, 16)
    assert dispatch.few_rows(CPU, torch.bfloat16) == (choices.FEW_ROWS,) * 3


def test_a_backend_goes_before_the_one_built_in_for_a_gain():
    assert autotune.fastest({"cpp": 1.0, "eager": 0.95}) == "cpp"
    assert autotune.fastest({"cpp": 1.0, "eager": 0.8}) == "eager"
    assert autotune.fastest({"triton": 1.0, "cpp": 0.8, "eager": 0.7}) == "eager"
    assert autotune.fastest({"cpp": 1.0, "eager": 2.0}) == "cpp"


@pytest.mark.parametrize(
    ("dense", "low", "high", "expected"),
    [(2.0, 3.0, 1.0, 0.6), (4.0, 3.0, 1.0, 0.0), (0.5, 3.0, 1.0, 1.0), (2.0, 1.0, 1.0, 0.0), (1.0, 2.0, 2.0, 1.0)],
)
def test_the_break_even_is_where_sparse_products_become_faster(dense, low, high, expected):
    class Told:
        def milliseconds(self, run, arguments):
            if run is not tk.sparse_linear:
                return dense
            return low if arguments[1].sparsity < 0.6 else high

    found = autotune.break_even(Told(), (64, 64))
    assert found == {"float32": pytest.approx(expected), "bfloat16": pytest.approx(expected)}


def test_a_quick_run_writes_what_it_found(cache):
    result = measure("--quick")
    assert result.returncode == 0, result.stderr
    (found,) = [each for name, each in json.loads(cache.read_text(encoding="utf-8")).items() if "cuda" not in name][:1]
    if tk.backends()["mask_weight"]["cpu"] == "cpp":
        assert len(found["backends"]["pack_mask"]["any"].split()) == 3
        assert set(found["backends"]["mask_weight"]) in ({"any"}, {"float32", "float16", "bfloat16"})
        assert "mask_weight, 64 × 64, bfloat16" in result.stdout
    assert set(found["break_even"]) == {"float32", "bfloat16"}
    assert "sparse products from, float32" in result.stdout
    assert str(cache) in result.stdout


def test_nothing_is_measured_where_a_backend_is_forced(cache):
    result = measure(TAMT_KERNELS="eager")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("TAMT_KERNELS=eager leaves no choice to measure; unset it")
    assert not cache.exists()
