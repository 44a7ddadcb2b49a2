"""Everything that needs a GPU, in one command for a bare machine: ``python3 -m benchmarks.gpu_suite DIR [PART ...]``.

It builds the extension in place, runs the tests of the kernels and of the GPU, measures, and looks for bad memory
accesses and races in the CUDA kernels. With names of parts it does these alone. The whole takes at most nine minutes:
every part has its own limit, and the last parts give way. What a part found lies in DIR as soon as it has ended:
``suite.log`` has the output of all, ``summary.json`` how each went.

It needs torch, Triton, transformers, numpy, pytest and nvcc; no network, no virtual environment, no installed tamt.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if importlib.util.find_spec("torch") is None:
    print(
        f"gpu-suite: error: {sys.executable} has no torch; name one that has: make gpu-suite PYTHON=...",
        file=sys.stderr,
    )
    sys.exit(2)

import torch

from benchmarks import machine
from tamt.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
WHOLE_SECONDS = 530
STEP_NEEDS = ("accelerate", "safetensors", "rich", "yaml")  # beside what the machine must have
LOG, SUMMARY = "suite.log", "summary.json"
WORKERS = "12"
LINES_SHOWN = 30  # of what a part that failed said last
LAST_WORDS_SECONDS = 5  # for a part that is out of time: pytest then says what has failed so far


@dataclass(frozen=True)
class Part:
    """A command with its limit, or the reason why it cannot run here."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""


def parts(folder: Path, capability: tuple[int, int]) -> list[Part]:
    """What is run, the most telling first."""
    python = [sys.executable, "-u"]
    pytest = [*python, "-m", "pytest", "--color=no", "-p", "no:cacheprovider", "--durations=10"]
    # Neither is among what the machine must have: without hypothesis one file of tests is lost, without xdist time.
    without = [] if importlib.util.find_spec("hypothesis") else ["--ignore=tests/kernels/test_threshold.py"]
    # What is interpreted, compiled for no GPU in particular, or of the CPU alone is tested anywhere; it takes minutes.
    anywhere = ("test_triton.py", "test_triton_compiles.py", "test_cuda_compiles.py", "test_sanitizers.py")
    without += [f"--ignore=tests/kernels/{name}" for name in anywhere]
    parallel = ["-n", WORKERS, "-p", "no:benchmark"] if importlib.util.find_spec("xdist") else []
    # Left alone, each worker takes a thread on every core: in 150 s a quarter of the kernels' tests were done.
    one_thread = {"OMP_NUM_THREADS": "1"} if parallel else {}
    architecture = {"TAMT_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": f"{capability[0]}.{capability[1]}"}
    kernels = ["-m", "benchmarks", "kernels", "--device", "cuda", "--seconds", "0.5", "--output", str(folder)]
    semi = ["-m", "benchmarks", "semi", "--output", str(folder)]
    step = ["-m", "benchmarks", "step", "--device", "cuda", "--seconds", "3"]
    compiled = [*step, "--objective", "mlm", "--no-memory", "--output", str(folder / "compile")]
    step += ["--no-compile", "--output", str(folder)]  # compiling takes longer than all else that is measured
    lacking = [name for name in STEP_NEEDS if not importlib.util.find_spec(name)]
    unavailable = f"tamt needs {', '.join(lacking)}" if lacking else ""
    return [
        Part("build", [*python, "setup.py", "build_ext", "--inplace"], 150, architecture),
        # Most of their time goes to compiling Triton's kernels for every type, which several processes share.
        Part("GPU tests", [*pytest, *parallel, "tests/gpu"], 200, one_thread),
        Part("step benchmarks", [*python, *step], 180, unavailable=unavailable),
        Part("kernel benchmarks", [*python, *kernels], 150),
        Part("2:4 products", [*python, *semi], 90),
        *(sanitizer(tool) for tool in ("memcheck", "racecheck")),
        Part("kernel tests", [*pytest, *parallel, *without, "tests/kernels"], 100, one_thread),
        Part("compiled step benchmarks", [*python, *compiled], 120, unavailable=unavailable),
    ]


def sanitizer(tool: str) -> Part:
    """A look of compute-sanitizer at every CUDA kernel of the extension, on small inputs."""
    folders = [os.environ.get("PATH", ""), os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    command = [program or "", "--tool", tool, "--error-exitcode", "1"]
    if tool == "memcheck":  # torch asks the driver for what it may not have: no fault of a kernel
        command += ["--report-api-errors", "no"]
    command += [sys.executable, "-u", "tests/gpu/every_cuda_kernel.py"]
    # Where blocks are cut from one large allocation, an access just past a tensor is still inside it.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    unavailable = "" if program else "compute-sanitizer is not installed"
    return Part(f"compute-sanitizer {tool}", command, 90, environment, unavailable)


def run(part: Part, log: Path, seconds: float) -> dict[str, Any]:
    """Run one part, its output at the end of the log; return what became of it."""
    if part.unavailable:
        return {"part": part.name, "result": "left out", "reason": part.unavailable}
    limit = min(part.seconds, seconds)
    if limit <= 0:
        return {"part": part.name, "result": "failed", "reason": "the time of the whole suite is used up"}
    begin = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n===== {part.name}: {' '.join(part.command)}\n")
        output.flush()
        # In a process group of its own, so that a part that is out of time takes its compilers and workers with it.
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env={**os.environ, **part.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            found = {"result": "passed"} if code == 0 else {"result": "failed", "reason": f"exit code {code}"}
        except subprocess.TimeoutExpired:
            found = {"result": "failed", "reason": f"not done after {limit:.0f} s"}
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"part": part.name, **found, "seconds": round(time.monotonic() - begin, 1)}


def run_all(parts: list[Part], folder: Path, seconds: float, machine: dict[str, str]) -> int:
    """Run the parts, the summary written anew after each; return 1 where one failed, else 0."""
    end = time.monotonic() + seconds
    found: list[dict[str, Any]] = []
    log = folder / LOG
    log.write_text("", encoding="utf-8")
    for part in parts:
        begin = log.stat().st_size
        found.append(run(part, log, end - time.monotonic()))
        if found[-1]["result"] == "failed":
            said = log.read_bytes()[begin:].decode(errors="replace").splitlines()
            print("\n".join(said[-LINES_SHOWN:]))
        print(", ".join(str(value) for value in found[-1].values()), flush=True)
        summary = json.dumps({"machine": machine, "parts": found}, indent=1)
        (folder / SUMMARY).write_text(summary + "\n", encoding="utf-8")
    return int(any(each["result"] == "failed" for each in found))


def _chosen(parts: list[Part], names: list[str]) -> list[Part]:
    """The parts of these names, all where none is given. Raises UserError for a name that no part has."""
    known = [part.name for part in parts]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no part {unknown[0]!r}; the parts are {', '.join(known)}")
    return [part for part in parts if part.name in names or not names]


def main(arguments: list[str]) -> int:
    """Run the suite; return 0, 1 where a part failed, or 2 where it cannot run."""
    try:
        if not arguments or not arguments[0]:
            raise UserError("it needs the folder for the results: make gpu-suite OUT=dir")
        device = machine.device("cuda")
        folder = Path(arguments[0]).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}") from error
        chosen = _chosen(parts(folder, torch.cuda.get_device_capability(device)), arguments[1:])
    except UserError as error:
        print(f"gpu-suite: error: {error}", file=sys.stderr)
        return 2
    return run_all(chosen, folder, WHOLE_SECONDS, machine.describe(device))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
