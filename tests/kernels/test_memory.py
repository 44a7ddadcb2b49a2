"""Memory that is kept for tensors to come, in a process of its own, as it is kept for good."""

import sys

import pytest

import tamt_kernels as tk
from tamt_kernels.backend.dispatch import find_extension

from . import fresh

MB = 1 << 18  # entries of float32

START = f"""
import signal
import threading
import torch
import tamt_kernels as tk

MB = {MB}
before = torch.full((4 * MB,), 3.0)
assert tk.reuse_freed_memory()

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmRSS"))
"""

CHECKS = {
    "a block waits for a tensor of its size or a little less": """
a, b = torch.ones(4 * MB), torch.ones(16 * MB)
where = a.data_ptr(), b.data_ptr()
del a, b
assert torch.empty(int(3.9 * MB)).data_ptr() == where[0]
assert torch.empty(15 * MB).data_ptr() == where[1]
assert torch.empty(2 * MB).data_ptr() not in where
""",
    "what was there before goes back to where it came from": """
assert before.sum() == 12 * MB
del before
assert torch.full((4 * MB,), 2.0).sum() == 8 * MB
""",
    "no more is held than was in use at once": """
torch.ones(MB)
start = resident()
for size in range(4, 60):
    torch.ones(size * MB)
for size in reversed(range(4, 60)):
    torch.ones(size * MB)
assert resident() - start < 80
""",
    "a spare share may be held beyond what was in use at once": """
for spare, given_back in ((0.0, 50), (1.0, 0)):
    assert tk.reuse_freed_memory(spare)
    a, b = torch.ones(40 * MB), torch.ones(10 * MB)
    del b, a
    held = resident()
    torch.empty(20 * MB)
    assert abs(held - resident() - given_back) < 4
""",
    "a step's blocks are all taken again": """
def step():
    held = [torch.ones(size * MB) for size in (3, 7, 3, 20, 7)]
    return {each.data_ptr() for each in held}
step()
assert step() == step()
""",
    "several threads": """
wrong = []
def work(number):
    drawn = torch.Generator().manual_seed(number)
    held = []
    for size in torch.randint(1, 3 * MB, (300,), generator=drawn).tolist():
        held.append(torch.full((size,), float(number)))
        if len(held) > 4:
            each = held.pop(size % 4)
            wrong.extend([number] if each.min() != number or each.max() != number else [])
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong
""",
    "more than there is": """
try:
    torch.empty(1 << 45)
    raise SystemExit("taken")
except RuntimeError as error:
    assert "not enough memory on the CPU: 140737488355328 bytes were requested" in str(error), error
assert torch.ones(4 * MB).sum() == 4 * MB
""",
    "what waits is given back where there is no more": """
import resource
torch.ones(150 * MB)
address_space = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (address_space + 400 * MB, -1))
more = torch.ones(201 * MB)
assert more[-1] == 1
""",
    "a fork while other threads take and free": """
import os
def work():
    while not done:
        torch.empty(MB)
done = False
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
forked = []
for _ in range(20):
    if not (pid := os.fork()):
        signal.alarm(20)  # ends the child if it waits for a lock that no one holds
        torch.empty(MB)
        os._exit(0)
    forked.append(os.waitpid(pid, 0)[1])
done = True
assert forked == [0] * 20, forked
""",
    "resized and empty tensors": """
a = torch.ones(4 * MB)
a.resize_(40 * MB)[4 * MB :] = 1
assert a.sum() == 40 * MB
assert torch.empty(0).sum() == 0
assert torch.ones(1).resize_(2 * MB)[0] == 1
""",
}


@pytest.mark.skipif(sys.platform != "linux" or find_extension()[0] is None, reason="needs Linux and the C++ extension")
@pytest.mark.parametrize("what", CHECKS)
def test_freed_memory_is_reused(what):
    done = fresh.run(START + CHECKS[what])
    assert done.returncode == 0, done.stderr


def test_without_the_extension_nothing_changes(monkeypatch):
    monkeypatch.setattr("tamt_kernels.backend.memory.find_extension", lambda: (None, "it is not built"))
    assert not tk.reuse_freed_memory()


@pytest.mark.parametrize("spare", [-0.1, float("nan"), float("inf")])
def test_a_spare_share_is_a_number_from_0(spare):
    with pytest.raises(ValueError, match="spare is .* but must be a number from 0"):
        tk.reuse_freed_memory(spare)
