"""`tamt train`, `tamt evaluate` and `tamt finetune` from end to end on a GPU, tiny models, as users call them."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tamt.commands.evaluate import evaluate
from tamt.data.corpora import Blocks
from tamt.finetuning.finetune import finetune
from tamt.masks.file import load_masks
from tamt.search.train import train
from tamt.training.loss_scale import NonFiniteError
from tamt.training.run_folder import RunFolder

STEPS = 24
OPTIONS = {"max_length": 16, "batch_size": 8, "steps": STEPS, "log_every": 1, "eval_every": 8, "head_warmup_steps": 4}


@pytest.fixture(autouse=True)
def _text_without_datasets(monkeypatch):
    """What `load_corpus` makes of a text, as a machine with a GPU need not have the library that it reads text by."""

    def load_corpus(*_: object) -> tuple[Blocks, Blocks]:
        tokens = torch.randint(5, 28, (5000,), generator=torch.Generator().manual_seed(0)).int()
        return Blocks(tokens, OPTIONS["max_length"], [2], [3], 0).split(300)

    monkeypatch.setattr(sys.modules["tamt.search.train"], "load_corpus", load_corpus)
    for module, name in (("tamt.search.train", "load_held_out"), ("tamt.commands.evaluate", "load_dev_corpus")):
        monkeypatch.setattr(sys.modules[module], name, lambda *_: load_corpus()[1])


def differing(*files: Path) -> float:
    """The share of entries in which two masks differ."""
    first, second = (load_masks(file)[0] for file in files)
    changed = sum(int((first[name] ^ second[name]).sum()) for name in first)
    return changed / sum(mask.numel() for mask in first.values())


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        *((method, "bf16") for method in ("tamt-mlm", "tamt-kd", "tamt-mlm+kd", "imp", "omp", "rand")),
        *((method, precision) for method in ("tamt-mlm+kd", "imp") for precision in ("fp16", "fp32")),
    ],
)
def test_train_finds_the_mask_it_finds_without_graphs(method, precision, still: Path, losses_of, tmp_path: Path):
    for name, refused in (("graphs", False), ("none", True)):
        result = train(
            method, str(still), tmp_path / name, ["text"], precision=precision, no_cuda_graphs=refused, **OPTIONS
        )
        assert result["results"][-1]["sparsity"] == pytest.approx(0.7, abs=1e-3)
        assert result["results"][-1]["kd_loss"] >= 0
    assert losses_of(tmp_path / "graphs") == pytest.approx(losses_of(tmp_path / "none"), rel=3e-2)
    assert differing(*(tmp_path / name / "mask.safetensors" for name in ("graphs", "none"))) < 0.02


def test_a_pattern_is_found_from_graphs_as_without(still: Path, losses_of, tmp_path: Path):
    for name, refused in (("graphs", False), ("none", True)):
        output = tmp_path / name
        train("tamt-kd", str(still), output, ["text"], pattern="2:4", no_cuda_graphs=refused, **OPTIONS)
        masks, _ = load_masks(output / "mask.safetensors")
        assert all(mask.reshape(-1, 4).sum(1).eq(2).all() for mask in masks.values())
    assert losses_of(tmp_path / "graphs") == pytest.approx(losses_of(tmp_path / "none"), rel=3e-2)


@pytest.mark.parametrize(("method", "every"), [("tamt-mlm+kd", 1), ("tamt-mlm+kd", 4), ("imp", 1)])
def test_an_interrupted_search_ends_with_the_same_mask(
    method, every, still: Path, losses_of, tmp_path: Path, monkeypatch
):
    options = {**OPTIONS, "save_every": 5, "threshold_every": every}
    train(method, str(still), tmp_path / "whole", ["text"], **options)
    log = RunFolder.log

    def interrupt(folder: RunFolder, step: int, **figures: float) -> None:
        log(folder, step, **figures)
        if step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(method, str(still), tmp_path / "halves", ["text"], **options)
    train(method, str(still), tmp_path / "halves", ["text"], resume=True, **options)
    assert losses_of(tmp_path / "halves") == pytest.approx(losses_of(tmp_path / "whole"), rel=3e-2)
    assert differing(*(tmp_path / name / "mask.safetensors" for name in ("whole", "halves"))) < 0.02


def test_evaluate_finds_the_losses_of_the_search(still: Path, tmp_path: Path):
    (searched,) = train("tamt-mlm+kd", str(still), tmp_path / "run", ["text"], precision="bf16", **OPTIONS)["results"]
    mask, head = (tmp_path / "run" / name for name in ("mask.safetensors", "head.safetensors"))
    (found,) = evaluate(str(still), ["text"], mask, head, OPTIONS["max_length"], precision="bf16")["results"]
    assert found["sparsity"] == searched["sparsity"]
    for loss in ("mlm_loss", "kd_loss"):
        assert found[loss] == pytest.approx(searched[loss], rel=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_finetune_learns_the_same_from_graphs(precision, still: Path, cats_and_dogs, losses_of, tmp_path: Path):
    mask = tmp_path / "omp" / "mask.safetensors"
    train("omp", str(still), mask.parent)
    scores = []
    for name, refused in (("graphs", False), ("none", True)):
        found = finetune(
            "classification", str(still), tmp_path / name, mask, **cats_and_dogs, epochs=3, batch_size=8,
            max_length=30, lr=2e-3, eval_every=20, log_every=1, precision=precision, no_cuda_graphs=refused,
        )  # fmt: skip
        scores.append(found["results"][0]["score"])
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "model")
        for matrix, kept in load_masks(mask)[0].items():
            assert not model.base_model.get_parameter(matrix)[~kept].any()
    assert scores == [1.0, 1.0]
    first, second = (losses_of(tmp_path / name) for name in ("graphs", "none"))
    assert first[:20] == pytest.approx(second[:20], rel=5e-2)
    assert first[-1] < first[0] / 4


def test_a_fine_tuning_that_diverges_says_so_from_graphs_too(still: Path, cats_and_dogs, tmp_path: Path):
    with pytest.raises(NonFiniteError, match=r"became .* at step"):
        finetune(
            "classification", str(still), tmp_path / "run", **cats_and_dogs, epochs=3, batch_size=8, max_length=30,
            lr=1e30, log_every=1, precision="bf16",
        )  # fmt: skip
