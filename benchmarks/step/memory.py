"""The most memory that a contender takes, alone in a process of its own: model, optimizer, and four steps."""

import json
import subprocess
import sys

import torch

from benchmarks import clocks, machine
from benchmarks.step.contenders import CONTENDERS, Setting


def peak(setting: Setting, objective: str, name: str) -> int | None:
    """Bytes beyond those of the process with all its libraries loaded; None where the system does not tell.

    Raises:
        RuntimeError: the process failed.
    """
    asked = json.dumps([str(setting.device), *setting[1:], objective, name])
    command = [sys.executable, "-m", "benchmarks.step.memory", asked]
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{objective}, {name}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(asked: str) -> None:
    """Print what `peak` returns."""
    device, model, batch, length, accumulation, objective, name = json.loads(asked)
    setting = Setting(torch.device(device), model, batch, length, accumulation)

    def take_steps() -> None:
        step = CONTENDERS[objective][name](setting)
        for _ in range(4):
            step()

    torch.ones(64, 64) @ torch.ones(64, 64)  # loads what belongs to no contender
    print(json.dumps(clocks.clock(setting.device).peak_memory(take_steps)))


if __name__ == "__main__":
    main(sys.argv[1])
