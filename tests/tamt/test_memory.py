"""A long mask training holds no more memory at its end than at its beginning.

Only with TAMT_SOAK=1 (`make soak`); for half an hour, or TAMT_SOAK_SECONDS.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from tamt.runtime.termination import EXIT_CODE

SECONDS = float(os.environ.get("TAMT_SOAK_SECONDS", "1800"))
WARM_UP = SECONDS / 6
"""In which the allocator's memory may still grow."""
SAMPLE_EVERY = SECONDS / 900
GROWTH = 0.01

OPTIONS = (
    "--method tamt-mlm+kd --steps 100000000 --max-length 16 --batch-size 8 --threshold-every 3 --log-every 5 "
    "--eval-every 50 --save-every 25 --keep 3 --save-at 1000,2000"
)


def resident(process: int) -> int:
    """Bytes of memory that a process has in use."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("TAMT_SOAK" not in os.environ, reason="half an hour")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")
def test_the_memory_of_a_long_run_is_flat(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    command = ["train", "--model", tiny_bert, "--corpus", corpus, "--output", tmp_path / "run", *OPTIONS.split()]
    said = tmp_path / "said"
    with said.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "tamt", *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )
    samples = []
    started = time.monotonic()
    while (now := time.monotonic() - started) < SECONDS:
        try:
            run.wait(SAMPLE_EVERY)
            break
        except subprocess.TimeoutExpired:
            samples.append((now, resident(run.pid)))
    run.terminate()
    assert run.wait() == EXIT_CODE, said.read_text()
    steps = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]

    measured = [size for when, size in samples if when > WARM_UP]
    part = len(measured) // 10
    first, last = median(measured[:part]), median(measured[-part:])
    print(f"{steps} steps in {SECONDS:.0f} s: {first / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB resident")
    assert abs(last / first - 1) < GROWTH, [(round(when), size) for when, size in samples[:: len(samples) // 60 or 1]]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3
