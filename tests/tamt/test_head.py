"""Head warm-up: when it ends, which head it keeps, and that it repeats itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tamt.models.language_model import load_masked_language_model
from tamt.search import head as head_module
from tamt.search.head import BestHead, start_from_frequencies
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


def test_the_rate_is_cut_after_two_measurements_without_a_fall_of_half_a_percent() -> None:
    best, measurements = fed([8.0, 7.0, 6.98, 6.97])
    assert (measurements, best.cuts) == (4, 1)
    assert best.rate(0) == 0.3
    assert (best.loss, best.step, best.parameters["bias"].item()) == (6.97, 200, 4), "the lowest one, however little"


def test_it_ends_when_the_loss_has_stopped_falling_after_three_cuts() -> None:
    best, measurements = fed([8.0, 7.0, *8 * [6.99], 1.0])
    assert measurements == 10
    assert best.loss == 6.99


def test_a_fall_begins_the_count_anew_and_a_rise_keeps_the_head_before() -> None:
    best, measurements = fed([8.0, 8.0, 7.0, 7.5, 6.0, 9.0, 9.0])
    assert (measurements, best.cuts) == (7, 1)
    assert (best.loss, best.step, best.parameters["bias"].item()) == (6.0, 250, 5)


def test_small_falls_that_add_up_are_a_fall() -> None:
    best, _ = fed([8.0, 7.97, 7.94, 7.91, 7.88])
    assert best.cuts == 0


def test_a_loss_that_is_no_number_is_worse_than_any() -> None:
    assert fed([math.nan, math.nan])[0].parameters["bias"].item() == 1
    assert fed([math.nan, 7.0, math.nan])[0].parameters["bias"].item() == 2


def test_a_fresh_head_starts_from_the_frequencies_of_tokens(tiny_mpnet: Path) -> None:
    student = load_masked_language_model(str(tiny_mpnet))
    start_from_frequencies(student, torch.tensor([5, 5, 5, 7], dtype=torch.int32))
    assert student.decoder.bias is not None
    shares = student.decoder.bias.softmax(0)
    rest = 1 / (4 + student.decoder.out_features)
    assert torch.allclose(shares[[5, 7, 8]], torch.tensor([4.0, 2.0, 1.0]) * rest)
    states = torch.randn(3, student.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.layer_norm(torch.nn.functional.gelu(states), states.shape[1:])
    assert torch.allclose(student.transform(states), plain, atol=1e-4), "the transform is the identity before GELU"


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
    monkeypatch.setattr(head_module, "LEARNING_RATE", 1e-1)
    train(**headless, output=tmp_path / "run", head_warmup_steps=300)
    measured = measured_in(tmp_path / "run")
    best = min(measured, key=lambda step: measured[step])
    assert list(measured) == list(range(5, 5 * len(measured) + 1, 5))
    assert len(measured) < 60, "it ends by itself"
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
