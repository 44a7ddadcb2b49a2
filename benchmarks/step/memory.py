"""The most memory that a contender takes: model, optimizer, and four steps."""

import gc
import json
import subprocess
import sys

import torch

from benchmarks import clocks, machine
from benchmarks.step.contenders import CONTENDERS, Setting


def peak(setting: Setting, objective: str, name: str) -> int | None:
    """Bytes beyond those that were there; None where the system does not tell.

    On a CPU in a process of its own with all its libraries loaded, as what others left behind is there as well. A GPU's
    allocator knows what is new.

    Raises:
        RuntimeError: the process failed.
    """
    if setting.on_gpu:
        return _peak_here(setting, objective, name)
    asked = json.dumps([str(setting.device), *setting[1:], objective, name])
    command = [sys.executable, "-m", "benchmarks.step.memory", asked]
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{objective}, {name}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_here(setting: Setting, objective: str, name: str) -> int | None:
    def take_steps() -> None:
        step = CONTENDERS[objective][name](setting)
        for _ in range(4):
            step()

    gc.collect()  # what were freed meanwhile would count as less
    return clocks.clock(setting.device).peak_memory(take_steps)


def main(asked: str) -> None:
    """Print what `peak` returns."""
    device, *shape, objective, name = json.loads(asked)
    torch.ones(64, 64) @ torch.ones(64, 64)  # loads what belongs to no contender
    setting = Setting(torch.device(device), *shape)
    print(json.dumps(_peak_here(setting, objective, name)))


if __name__ == "__main__":
    main(sys.argv[1])
