"""Head warm-up: when it ends, which head it keeps, and that it repeats itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tamt.search import head as head_module
from tamt.search.head import BestHead
from tamt.search.train import train


def fed(losses: list[float]) -> tuple[BestHead, int]:
    """What has become of the best head when the warm-up ends, and after how many measurements."""
    best, parameter = BestHead(), nn.Parameter(torch.zeros(1))
    for number, loss in enumerate(losses, 1):
        with torch.no_grad():
            parameter.fill_(number)
        best.update(loss, 50 * number, {"bias": parameter})
        if best.stopped_falling:
            return best, number
    return best, len(losses)


def test_it_ends_after_two_measurements_without_a_fall_of_one_percent() -> None:
    best, measurements = fed([8.0, 7.0, 6.95, 6.94, 1.0])
    assert measurements == 4
    assert (best.loss, best.step, best.parameters["bias"].item()) == (6.94, 200, 4), "the lowest one, however little"


def test_a_fall_begins_the_count_anew_and_a_rise_keeps_the_head_before() -> None:
    best, measurements = fed([8.0, 8.0, 7.0, 7.5, 6.0, 9.0, 9.0])
    assert measurements == 7
    assert (best.loss, best.step, best.parameters["bias"].item()) == (6.0, 250, 5)


def test_small_falls_that_add_up_are_a_fall() -> None:
    _, measurements = fed([8.0, 7.95, 7.90, 7.85, 7.80])
    assert measurements == 5


def test_a_loss_that_is_no_number_is_worse_than_any() -> None:
    assert fed([math.nan, math.nan])[0].parameters["bias"].item() == 1
    assert fed([math.nan, 7.0, math.nan])[0].parameters["bias"].item() == 2


@pytest.fixture
def headless(tiny_mpnet: Path, corpus: Path) -> dict:
    """Options of a search that needs a head for a checkpoint without one."""
    common = {"method": "tamt-mlm", "model": str(tiny_mpnet), "corpus": [str(corpus)], "max_length": 16, "steps": 4}
    return {**common, "batch_size": 8}


def measured_in(folder: Path) -> dict[int, float]:
    """The dev losses of the head by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {line["step"]: line["head_warmup_dev"] for line in lines if "head_warmup_dev" in line}


def test_the_dev_loss_of_the_kept_head_is_the_lowest_and_reported(
    headless: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(head_module, "EVALUATE_EVERY", 5)
    monkeypatch.setattr(head_module, "LEARNING_RATE", 3e-2)
    train(**headless, output=tmp_path / "run", head_warmup_steps=200)
    measured = measured_in(tmp_path / "run")
    best = min(measured, key=lambda step: measured[step])
    assert list(measured) == list(range(5, 5 * len(measured) + 1, 5))
    assert len(measured) < 40, "it ends by itself"
    assert measured[best] < measured[5]
    told = capsys.readouterr().err
    assert f"a dev loss of {measured[best]:.3f} after {best} steps, which has stopped falling" in told


def test_the_cap_is_reported(headless: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(**headless, output=tmp_path / "run", head_warmup_steps=7)
    assert list(measured_in(tmp_path / "run")) == [7]
    assert "after 7 steps, which may fall further with more --head-warmup-steps" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_head_to_the_bit(headless: dict, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(**headless, output=tmp_path / name, head_warmup_steps=60)
    first, second = (load_file(tmp_path / name / "head.safetensors") for name in ("a", "b"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
