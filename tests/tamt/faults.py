"""Commands in processes of their own that are killed, terminated or refused disk space at a chosen moment.

As a program it is a server: each line of its input is a request, answered by one line with the exit code of a forked
process that did it. Before, it does each command once itself, so that nothing is to be imported or set up in a fork: a
tiny run takes 0.5 s there, and 7 s in a new process.
"""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
"""Audit events of calls that change a folder; `open` for writing is another. Saves are made of these."""


@dataclass
class Fault:
    """What befalls a command.

    Attributes:
        kind: kill (SIGKILL) before the file operation of number `moment` in the run's folder; terminate (SIGTERM, once)
            or full (ENOSPC from that one on) there; time: SIGKILL after `moment` seconds; small: no file can grow
            beyond `moment` bytes; none.
        moment: see `kind`; operations are counted from 0.
    """

    kind: str = "none"
    moment: float = 0


class Server:
    """Runs commands with faults; use it as a context manager."""

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # a fork cannot use the GPU of its parent
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, words: Sequence[str], folder: Path, fault: Fault) -> dict[str, Any]:
        """Run `tamt` with these words in `folder`, where it writes to `run`.

        Returns:
            `code`, negative for a signal; `error`, the last line of stderr; `stderr`; `operations`, how many file
            operations there were, -1 where it did not live to tell; `seconds`.
        """
        request = {"words": list(words), "folder": str(folder), **asdict(fault)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        answer["stderr"] = (folder / "stderr").read_text(encoding="utf-8")
        counted = folder / "operations"
        answer["operations"] = int(counted.read_text()) if counted.is_file() else -1
        counted.unlink(missing_ok=True)
        return answer


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = set()
    for line in sys.stdin:
        request = json.loads(line)
        if request["words"][0] not in known:
            with tempfile.TemporaryDirectory() as folder:
                _run_here([word for word in request["words"] if word != "--resume"], folder)
            known.add(request["words"][0])
        child = os.fork()
        if child == 0:
            _run(request)
        _, status, usage = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "seconds": usage.ru_utime + usage.ru_stime}), file=answers, flush=True)


def _run_here(words: list[str], folder: str) -> int:
    os.chdir(folder)
    output = os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    code = main(words)
    sys.stderr.flush()
    sys.stdout.flush()
    return code


def _run(request: dict[str, Any]) -> None:
    operations = _inject(request["kind"], request["moment"], Path(request["folder"], "run"))
    code = _run_here(request["words"], request["folder"])
    if request["kind"] != "small":
        Path("operations").write_text(str(operations[0]))
    os._exit(code)


def _inject(kind: str, moment: float, run: Path) -> list[int]:
    """Prepare a fault in this process; returns the number of file operations so far, in a list that is kept up."""
    count = [0]

    def watch(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGING:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(str(run)):
            return
        count[0] += 1
        if kind == "kill" and count[0] == moment + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "terminate" and count[0] == moment + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "full" and count[0] > moment and event in {"open", "os.mkdir"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    if kind == "time":
        timer = threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    elif kind == "small":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment), resource.RLIM_INFINITY))
    else:
        sys.addaudithook(watch)
    return count


def moments(seed: int, count: int, last: int) -> list[int]:
    """So many random numbers from 0 up to `last`."""
    return random.Random(seed).sample(range(last + 1), min(count, last + 1))


if __name__ == "__main__":
    import torch

    from tamt.cli import main

    torch.set_num_threads(1)
    _serve()
