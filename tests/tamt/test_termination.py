"""SIGTERM and Ctrl-C: what is saved is kept, the exit code tells which it was, a second SIGTERM waits for nothing."""

import os
import signal
from collections.abc import Iterator

import pytest

from tamt.cli import main
from tamt.runtime import termination


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a shell turns off for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_does_not_train_ends_at_once() -> None:
    with pytest.raises(termination.Terminated) as raised, termination.handled():
        terminate()
    assert raised.value.last_good == 0


def test_a_training_ends_after_its_step() -> None:
    with termination.handled(), termination.deferred():
        termination.check(6)
        terminate()
        with pytest.raises(termination.Terminated) as raised:
            termination.check(7)
    assert raised.value.last_good == 7


def test_a_second_one_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with termination.handled(), termination.deferred():
        terminate()
        assert codes == []
        terminate()
    assert codes == [143]


def test_ctrl_c_ends_a_training_after_its_step_and_anything_else_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with termination.handled():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not termination.interrupted()
        with termination.deferred():
            termination.check(6)
            signal.raise_signal(signal.SIGINT)
            assert codes == []
            with pytest.raises(termination.Terminated) as raised:
                termination.check(7)
            signal.raise_signal(signal.SIGINT)
    assert (raised.value.last_good, termination.interrupted(), codes) == (7, True, [130])


def test_a_ctrl_c_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with termination.handled():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_training_says_what_is_saved(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def command(*_: object, **__: object) -> dict:
        with termination.deferred():
            signal.raise_signal(signal.SIGINT)
            termination.check(40)
        return {}

    monkeypatch.setattr("tamt.cli._run", command)
    assert main(["train"]) == 130
    assert "tamt train: interrupted; step 40 is saved; repeat the command with --resume" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handler_before_is_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with termination.handled():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    with termination.handled():
        termination.check(1)  # what an earlier command was asked is forgotten


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (termination.Terminated(40), 143, "step 40 is saved; repeat the command with --resume to continue from it"),
        (termination.Terminated(), 143, "repeat the command, with --resume for a run"),
        (KeyboardInterrupt(), 130, "interrupted; saved files are kept; repeat the command, with --resume for a run"),
        (OSError(28, "No space left on device", "a.png"), 2, "No space left on device: 'a.png'"),
    ],
)
def test_the_exit_code_and_one_sentence(raised, code, sentence, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def command(*_: object, **__: object) -> dict:
        raise raised

    monkeypatch.setattr("tamt.cli._run", command)
    assert main(["train"]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("tamt train: ")
    assert error.count("\n") == 1
