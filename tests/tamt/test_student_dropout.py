"""Whether the student of mask training has dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tamt.runtime import processes
from tamt.runtime.errors import UserError
from tamt.search.train import train


@contextmanager
def drawing_first(numbers: int) -> Iterator[None]:
    """Draw numbers from torch's generator before a search takes its first step."""
    begin = processes.own_dropout

    def draw_and_begin() -> None:
        begin()
        torch.rand(numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "own_dropout", draw_and_begin)
        yield


@pytest.mark.parametrize(
    ("options", "drops_out"),
    [
        ({}, False),
        ({"dropout": "none", "recipe": "paper"}, False),
        ({"dropout": "model"}, True),
        ({"recipe": "paper"}, True),
        ({"method": "tamt", "objective": "kd:1,contrastive:0.1"}, True),
    ],
)
def test_the_losses_depend_on_what_is_drawn_only_with_dropout(
    options: dict, drops_out: bool, losses_of, corpus: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    settings = {"method": "tamt-kd", "model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, **options}
    losses = []
    for draws in range(2):
        with drawing_first(draws):
            train(output=tmp_path / str(draws), steps=3, log_every=1, batch_size=2, **settings)
        losses.append(losses_of(tmp_path / str(draws)))
    assert (losses[0] != losses[1]) == drops_out


def test_dropout_is_refused_where_it_has_no_place(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "output": tmp_path / "run", "dropout": "none"}
    with pytest.raises(UserError, match="--dropout is for mask training, not imp; leave it out"):
        train(method="imp", **settings)
    with pytest.raises(UserError, match="--dropout none leaves the contrastive term nothing to compare"):
        train(method="tamt", objective="contrastive", **settings)
    assert not (tmp_path / "run").exists()
