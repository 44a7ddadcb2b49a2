"""The runner of the GPU suite, with parts that need no GPU."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu_suite import ROOT, Part
from tamt.runtime.errors import UserError


def part(name, code, seconds=60, **options):
    return Part(name, [sys.executable, "-S", "-c", code], seconds, **options)


def run_all(folder, parts, seconds=60):
    code = gpu_suite.run_all(parts, folder, seconds, {"device": "none"})
    assert {path.name for path in folder.iterdir()} == {"suite.log", "summary.json"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["machine"] == {"device": "none"}
    return code, summary["parts"], (folder / "suite.log").read_text()


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, capsys):
    parts = [
        part("first", "import sys; print('wrong', file=sys.stderr); sys.exit(3)"),
        part("second", "import os; print(os.environ['WORD'])", environment={"WORD": "spoken"}),
        part("third", "", unavailable="it is not installed"),
    ]
    code, found, log = run_all(tmp_path, parts)
    assert code == 1
    assert [each["result"] for each in found] == ["failed", "passed", "left out"]
    assert [each.get("reason") for each in found] == ["exit code 3", None, "it is not installed"]
    assert "===== first" in log
    assert "spoken" in log
    shown = capsys.readouterr().out
    assert "wrong" in shown
    assert "spoken" not in shown


def test_all_is_well(tmp_path):
    assert run_all(tmp_path, [part("one", "pass")])[0] == 0


def test_a_part_out_of_time_ends_with_what_it_started(tmp_path):
    held = tmp_path.parent / f"{tmp_path.name}-held"
    child = f"""
import fcntl, time
with open({str(held)!r}, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    time.sleep(60)
    file.write("done")
"""
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', {child!r}]); time.sleep(60)"
    code, (found, late), _log = run_all(tmp_path, [part("slow", parent, 1), part("late", "pass")], seconds=1)
    assert code == 1
    assert found["reason"] == "not done after 1 s"
    assert late["reason"] == "the time of the whole suite is used up"
    with held.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # which is there as soon as its holder is not
    assert held.read_text() == ""


def test_a_part_out_of_time_has_the_last_word(tmp_path):
    code = """
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("two have failed so far")
"""
    assert run_all(tmp_path, [part("slow", code, 1)])[0] == 1
    assert "two have failed so far" in (tmp_path / "suite.log").read_text()


def test_the_parts(tmp_path):
    parts = gpu_suite.parts(tmp_path, (9, 0))
    assert parts[0].environment == {"TAMT_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "9.0"}
    for each in parts:
        files = [word for word in each.command if word.startswith("tests/") or word.endswith(".py")]
        assert all((ROOT / word.split("=")[-1]).exists() for word in files)
        assert 0 < each.seconds < gpu_suite.WHOLE_SECONDS


def test_the_step_benchmarks_need_no_more_than_is_asked_for(tmp_path):
    """Nor an installed tamt: what a bare machine has not is taken away from this one."""
    code = f"""
import sys, importlib.metadata
sys.modules.update(dict.fromkeys(["datasets", "matplotlib", "hypothesis", "scipy", "sklearn"]))
importlib.metadata.version = lambda name, real=importlib.metadata.version: real(name if name != "tamt" else "no-tamt")
from benchmarks.__main__ import main
arguments = "step --device cpu --quick --no-memory --seconds 0 --objective mlm --output".split()
sys.exit(main([*arguments, {str(tmp_path)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [[], [""], ["results"], ["one", "two"]])
def test_what_cannot_run_is_said_in_one_sentence(arguments, capsys):
    assert gpu_suite.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu-suite: error: ")
    assert error.count("\n") == 1
    assert not Path("results").exists()


def test_a_python_without_torch_is_told():
    command = [sys.executable, "-S", "-m", "benchmarks.gpu_suite", "anywhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no torch; name one that has: make gpu-suite PYTHON=..." in done.stderr
    assert "Traceback" not in done.stderr


def test_parts_are_chosen_by_name():
    parts = [part("one", "pass"), part("two", "pass")]
    assert gpu_suite._chosen(parts, []) == parts
    assert gpu_suite._chosen(parts, ["two"]) == parts[1:]
    with pytest.raises(UserError, match="there is no part 'three'; the parts are one, two"):
        gpu_suite._chosen(parts, ["three"])
