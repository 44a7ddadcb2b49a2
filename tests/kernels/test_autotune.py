"""The table of what runs fastest: measured, kept, read at import, ignored where it is damaged."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels import choices

ROOT = Path(tk.__file__).parents[1]
SHOW = "import tamt_kernels as tk; found = tk.backends(); print(found['mask_weight']['cpu'], found['binarize']['cpu'])"
CPU = torch.device("cpu")

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


def run(*arguments, **environment):
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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
    choices.keep(CPU, choices.Choices({"mask_weight": "eager", "binarize": "cpp"}, {}))
    result = run("-c", f"{SHOW}; tk.dispatch.register_all(); {SHOW}")
    assert result.stdout.split() == ["eager", "cpp", "cpp", "cpp"]
    assert "Warning" not in result.stderr
    assert run("-c", SHOW, TAMT_KERNELS="cpp").stdout.split() == ["cpp", "cpp"]


def test_what_another_device_or_version_measured_does_not_hold(cache, monkeypatch):
    choices.keep(CPU, choices.Choices({"mask_weight": "eager"}, {}))
    assert choices.of(CPU).backends == {"mask_weight": "eager"}
    kept = json.loads(cache.read_text(encoding="utf-8"))
    (name,) = kept
    assert f"torch {torch.__version__.partition('+')[0]}" in name
    cache.write_text(json.dumps({name.replace("torch 2", "torch 1"): kept[name]}), encoding="utf-8")
    choices._read.cache_clear()
    choices.of.cache_clear()
    assert choices.of(CPU) == choices.Choices({}, {})
    choices.keep(CPU, choices.Choices({}, {"float16": 16}))
    assert len(json.loads(cache.read_text(encoding="utf-8"))) == 2  # that of the other is still there


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"cpu": 3}',
        '{"cpu": {"backends": {}}}',
        '{"cpu": {"backends": {"mask_weight": "fast"}, "few_rows": {}}}',
        '{"cpu": {"backends": {}, "few_rows": {"float16": "many"}}}',
        '{"cpu": {"backends": [], "few_rows": {}}}',
    ],
)
def test_a_damaged_file_is_ignored_and_said_once(cache, content):
    cache.parent.mkdir()
    cache.write_text(content, encoding="utf-8")
    with pytest.warns(UserWarning, match="ignores .*kernels.json, which is damaged") as caught:
        assert choices.of(CPU) == choices.of(torch.device("meta")) == choices.Choices({}, {})
    assert len(caught) == 1


def test_rows_are_those_measured_for_the_type(monkeypatch):
    from tamt_kernels import dispatch

    monkeypatch.delenv("TAMT_KERNELS", raising=False)
    monkeypatch.setattr(choices, "of", lambda device: choices.Choices({}, {"float16": 16}))
    assert dispatch.few_rows(CPU, torch.float16) == 0  # nothing here masks W as it is read
    monkeypatch.setattr(dispatch, "serves_product", lambda device: True)
    assert dispatch.few_rows(CPU, torch.float16) == 16
    assert dispatch.few_rows(CPU, torch.bfloat16) == choices.FEW_ROWS


def test_a_quick_run_writes_what_it_found(cache):
    result = run("-m", "tamt_kernels.autotune", "--quick")
    assert result.returncode == 0, result.stderr
    (found,) = [each for name, each in json.loads(cache.read_text(encoding="utf-8")).items() if "cuda" not in name][:1]
    if tk.backends()["mask_weight"]["cpu"] == "cpp":
        assert found["backends"]["mask_weight"] in ("cpp", "eager")
        assert "mask_weight, 64 × 64, bfloat16" in result.stdout
    assert str(cache) in result.stdout


def test_nothing_is_measured_where_a_backend_is_forced(cache):
    result = run("-m", "tamt_kernels.autotune", TAMT_KERNELS="eager")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("TAMT_KERNELS=eager leaves no choice to measure; unset it")
    assert not cache.exists()
