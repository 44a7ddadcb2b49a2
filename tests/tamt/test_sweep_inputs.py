"""Mistakes in what a study reads, found before its first run."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tamt.cli import main
from tamt.masks.file import MaskInfo, save_masks
from tamt.masks.masking import magnitude_masks, prunable_weights
from tamt.models.loading import load_encoder


@pytest.fixture
def refused(tmp_path: Path, tiny_bert: Path, corpus: Path, cats_and_dogs: dict[str, Path], capsys):
    """The message with which a study is refused, dry and not, with nothing written; None where it is not."""
    (tmp_path / "glue").mkdir()
    (tmp_path / "no-model").mkdir()
    encoder, _ = load_encoder(str(tiny_bert))
    half = magnitude_masks(prunable_weights(encoder), 0.5)
    info = MaskInfo("m", "omp", 0.5, 0, 0)
    save_masks(tmp_path / "half.safetensors", half, info)
    save_masks(tmp_path / "other.safetensors", {"w": torch.tensor([[True, False]])}, info)
    study = {
        "models": str(tiny_bert),
        "methods": "tamt-kd",
        "sparsities": 0.5,
        "corpus": str(corpus),
        "dev_corpus": str(corpus),
        "search": {"max_length": 16, "steps": 2},
        "tasks": {"mine": {"task": "classification", **{key: str(file) for key, file in cats_and_dogs.items()}}},
    }

    def call(*options: str, **changes: Any) -> str | None:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, **changes}))
        for dry in (["--dry-run"], []):
            code = main(["sweep", str(tmp_path / "study.yaml"), *dry])
            message = capsys.readouterr().err.replace("\n", " ")
            if code == 0:
                return None
            assert code == 2
            assert not list((tmp_path / "study").glob("*/*"))
        return message

    return call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": {"mine": {"task": "classification", "train_file": "a.tsv", "dev_file": "b.tsv"}}},
            "there is no file",
        ),
        ({"finetune": {"data_dir": "glue"}}, "--data-dir is for GLUE's layout"),
        ({"data_dir": "glue", "tasks": "sst2"}, "there are no train.tsv, dev.tsv in"),
        ({"tasks": {"squad": {"data_dir": "glue"}}}, "there is no train-v1.1.json"),
        ({"models": "no-model"}, "no-model"),
        ({"search": {"head": "nothing.safetensors"}}, "nothing.safetensors cannot be read"),
        ({"initial": "half.safetensors", "sparsities": [0.5, 0.7]}, "prunes 0.5 of"),
        ({"initial": "other.safetensors"}, "give the mask with the model it was found in"),
        ({"patterns": "3:7"}, "the pattern 3:7 does not fit the matrix"),
        ({"search": {"max_length": 33}}, "max_length 33 is more than the 32 tokens of"),
        ({"finetune": {"max_length": 200}}, "max_length 200 is more than the 32 tokens of"),
        ({"bench": {"tokens": [8, 64]}}, "tokens 64 is more than the 32 tokens of"),
    ],
)
def test_a_mistake_is_found_before_the_first_run(changes, message, refused) -> None:
    told = refused(**changes)
    assert told is not None
    assert message in told
    assert "study.yaml: " in told


def test_what_fits_is_not_refused(refused) -> None:
    structured = {"sparsities": None, "structures": "ffn:0.5"}
    assert refused(initial="half.safetensors", search={"max_length": 32}, patterns="2:4") is not None
    assert refused(initial="half.safetensors", search={"max_length": 32}, bench={"tokens": 32}) is None
    assert refused(**structured) is None
