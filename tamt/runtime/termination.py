"""SIGTERM: a training ends after its step, so that it can be saved; anything else ends where it is."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 143
"""What shells give a process that SIGTERM, 15, has ended: 128 more."""
SIGTERM: int | None = getattr(signal, "SIGTERM", None)
"""Its number; None where the system has no such signal."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end. Where a training was interrupted, its state is that after step `last_good`."""

    def __init__(self, last_good: int = 0) -> None:
        super().__init__()
        self.last_good = last_good


class _Requests:
    asked = False
    deferred = False


@contextmanager
def handled() -> Iterator[None]:
    """Answer SIGTERM inside by Terminated: at once, or where `deferred` says, at the next `check`. A second SIGTERM
    ends the process at once. Outside the main thread, which alone gets signals, nothing is changed, nor where there is
    no such signal."""
    if SIGTERM is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        if _Requests.asked:
            os._exit(EXIT_CODE)
        _Requests.asked = True
        if not _Requests.deferred:
            raise Terminated

    _Requests.asked = False
    before = signal.signal(SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(SIGTERM, before)


@contextmanager
def deferred() -> Iterator[None]:
    """Leave it to `check` to end what runs inside."""
    _Requests.deferred = True
    try:
        yield
    finally:
        _Requests.deferred = False


def asked() -> bool:
    """Whether the process was asked to end."""
    return _Requests.asked


def check(step: int) -> None:
    """Raise Terminated if the process was asked to end after `step`."""
    if _Requests.asked:
        raise Terminated(step)
