"""Code in fresh processes that have imported torch and nothing else: forks of one server, as the import takes seconds.

As a program it is that server: each line of its input is a request, answered by one line when its fork has ended.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """The exit code, stdout and stderr of `python -c code`, with these variables set, or none where None is given."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with tempfile.TemporaryDirectory() as folder:
        present = {name: value for name, value in variables.items() if value is not None}
        print(json.dumps({"code": code, "folder": folder, "environment": present}), file=server.stdin, flush=True)
        returncode = json.loads(server.stdout.readline())
        output, errors = (Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(code, returncode, output, errors)


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """The server of this process, which ends with it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(server.communicate)
    return server


def _serve() -> str:
    """Answer requests; returns in a fork, with the code that it is to run."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            os.environ.clear()
            os.environ.update(request["environment"])
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                file = os.open(Path(request["folder"], name), os.O_WRONLY | os.O_CREAT)
                os.dup2(file, descriptor)
                os.close(file)
            return str(request["code"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    sys.exit()


if __name__ == "__main__":
    import torch  # noqa: F401

    exec(_serve(), {"__name__": "__main__"})
