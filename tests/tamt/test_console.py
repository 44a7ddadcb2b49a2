"""How results are printed."""

import pytest

from tamt.runtime.console import show


def test_what_no_row_has_is_left_out_but_not_a_score_that_is_undefined(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"task": "stsb", "mask": None, "score": None, "mlm_loss": None, "lr": 1e-4}])
    assert capsys.readouterr().out.split() == ["task", "stsb", "score", "–", "mlm_loss", "–", "lr", "0.0001"]


def test_what_one_row_has_is_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"task": "stsb", "mask": "a.safetensors"}, {"task": "stsb", "mask": None}])
    shared, _, *table = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert shared == ["task", "stsb"]
    assert table == [["a.safetensors"], ["–"]]


def test_brackets_are_no_mark_up(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"mask": "kd[seed0].safetensors"}, {"mask": "kd[/red].safetensors"}])
    out = capsys.readouterr().out
    assert "kd[seed0].safetensors" in out
    assert "kd[/red].safetensors" in out


def test_a_column_that_the_first_row_lacks_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 3}])
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")] == [
        ["a", "1"],
        ["b"],
        ["–"],
        ["2"],
        ["3"],
    ]
