"""SIGTERM and Ctrl-C: what is saved is kept, the exit code tells which it was, a second SIGTERM waits for nothing."""

import os
import signal

import pytest

from tamt.cli import main
from tamt.runtime import termination


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


def test_the_handler_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with termination.handled():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with termination.handled():
        termination.check(1)  # what an earlier command was asked is forgotten


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (termination.Terminated(40), 143, "step 40 is saved; repeat the command with --resume to continue from it"),
        (termination.Terminated(), 143, "repeat the command, with --resume for a run"),
        (KeyboardInterrupt(), 130, "the last checkpoint is kept, --resume continues from it"),
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
