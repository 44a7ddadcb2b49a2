"""SIGTERM and Ctrl-C: a training ends after its step, so that it can be saved; anything else ends where it is."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

EXIT_CODE = 143
"""What shells give a process that SIGTERM, 15, has ended: 128 more."""
EXIT_CODE_OF_INTERRUPT = 130
"""The same for Ctrl-C, which is SIGINT, 2."""
SIGTERM: int | None = getattr(signal, "SIGTERM", None)
"""Its number; None where the system has no such signal."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end. Where a training was interrupted, its state is that after step `last_good`."""

    def __init__(self, last_good: int = 0) -> None:
        super().__init__()
        self.last_good = last_good


class _Requests:
    asked = False
    interrupted = False
    deferred = False


@contextmanager
def handled() -> Iterator[None]:
    """Answer SIGTERM inside by Terminated, and Ctrl-C by KeyboardInterrupt: at once, or where `deferred` says, both by
    Terminated at the next `check`. A second signal after one that was deferred ends the process at once. Outside the
    main thread, which alone gets signals, nothing is changed, nor for a signal that there is not or that is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        if _Requests.asked:
            os._exit(EXIT_CODE)
        _Requests.asked = True
        if not _Requests.deferred:
            raise Terminated

    def interrupt(*_: object) -> None:
        if _Requests.asked:
            os._exit(EXIT_CODE_OF_INTERRUPT)
        if not _Requests.deferred:
            raise KeyboardInterrupt
        _Requests.asked = _Requests.interrupted = True

    _Requests.asked = _Requests.interrupted = False
    with ExitStack() as stack:
        if SIGTERM is not None:
            _answer(stack, SIGTERM, terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            _answer(stack, signal.SIGINT, interrupt)
        yield


def _answer(stack: ExitStack, number: int, handle: Callable[..., None]) -> None:
    stack.callback(signal.signal, number, signal.signal(number, handle))


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


def interrupted() -> bool:
    """Whether the process was asked to end by Ctrl-C, at the next `check`."""
    return _Requests.interrupted


def check(step: int) -> None:
    """Raise Terminated if the process was asked to end after `step`."""
    if _Requests.asked:
        raise Terminated(step)
