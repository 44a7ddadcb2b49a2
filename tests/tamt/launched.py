"""Commands one after the other in each of the processes that torchrun starts; `launched.py FILE`.

FILE is JSON, a list of requests: `words`, those of the command; `fault`, none, or what befalls it. Each process writes
the exit codes of its own to `codes-RANK.json` beside FILE after each command.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import tamt.training.steps as training
from tamt.cli import main
from tamt.runtime import processes, termination
from tamt.runtime.files import write_atomically


def befall(fault: dict[str, Any]) -> None:
    """Before the step of number `step` in process `rank`: `kill` it, `terminate` its launcher, `ask` it
    alone to end, or `change` a score."""
    check = processes.check_termination

    def watched(step: int) -> None:
        if step == fault["step"] and processes.rank() == fault["rank"]:
            if fault["kind"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault["kind"] == "terminate":
                os.kill(os.getppid(), signal.SIGTERM)
            if fault["kind"] == "ask":
                termination._Requests.asked = True
            if fault["kind"] == "change":
                add_up = training._add_up

                def changed(optimizer: Any, losses: Any) -> None:
                    add_up(optimizer, losses)
                    with torch.no_grad():
                        optimizer.param_groups[0]["params"][0].view(-1)[5] += 1e-9
                    training._add_up = add_up

                training._add_up = changed
        check(step)

    processes.check_termination = watched


if __name__ == "__main__":
    torch.set_num_threads(1)
    requests = Path(sys.argv[1])
    codes = []
    for number, request in enumerate(json.loads(requests.read_text())):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # each command tells once why it ended
        unharmed = processes.check_termination
        if request.get("fault"):
            befall(request["fault"])
        codes.append(main(request["words"]))
        processes.check_termination = unharmed
        # Whole or not at all: the launcher terminates what is left when a process was killed.
        write_atomically(requests.parent / f"codes-{os.environ['RANK']}.json", json.dumps(codes))
    sys.exit(max(codes))
