"""Activations that are computed again give the same losses to the bit, and are kept no more."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tamt.finetuning.finetune import finetune
from tamt.masks.file import load_masks
from tamt.models.speed import checkpoint_activations
from tamt.models.task_models import load_classifier
from tamt.runtime.errors import UserError
from tamt.search.train import train
from tamt.training import step_graph
from tests.tamt.families import save_family

SHORT = {"max_length": 16, "batch_size": 4, "log_every": 1, "lr": 1e-3, "sparsity": 0.5}


def searches(model: Path, corpus: Path, folder: Path, method: str, **options: object) -> list[Path]:
    """The folders of the same search without and with checkpointing."""
    runs = []
    for again in (False, True):
        runs.append(folder / f"again-{again}")
        train(method, str(model), runs[-1], [str(corpus)], activation_checkpointing=again, **{**SHORT, **options})
    return runs


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tamt", {"objective": "mlm:1,kd:1,attention:1,logits:1,contrastive:1", "steps": 2}),
        ("tamt-kd", {"steps": 3, "dense_embedding": True, "accumulation": 2}),
        ("tamt-kd", {"steps": 3, "precision": "bf16"}),
        ("imp", {"steps": 10}),
    ],
)
def test_a_search_has_the_same_losses_and_masks(
    method: str, options: dict, tiny_bert: Path, corpus: Path, tmp_path: Path, losses_of: Callable
) -> None:
    before, again = searches(tiny_bert, corpus, tmp_path, method, **options)
    assert losses_of(before) == losses_of(again)
    assert len(losses_of(before)) >= 2
    masks = [load_masks(run / "mask.safetensors")[0] for run in (before, again)]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "deberta", "modernbert"])
def test_a_fine_tuning_has_the_same_losses_in_each_family(
    family: str, cats_and_dogs: dict, tmp_path: Path, losses_of: Callable
) -> None:
    model = save_family(tmp_path / "model", family)
    options = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "log_every": 1, "train_samples": 48, **cats_and_dogs}
    for again in (False, True):
        output = tmp_path / str(again)
        finetune("classification", str(model), output, activation_checkpointing=again, **options)
    assert losses_of(tmp_path / "False") == losses_of(tmp_path / "True")
    assert len(losses_of(tmp_path / "True")) == 3


def test_what_layers_make_is_not_kept_for_the_backward_pass(tiny_bert: Path) -> None:
    def kept(again: bool) -> int:
        model = load_classifier(str(tiny_bert), ["a", "b"]).train()
        if again:
            checkpoint_activations(model, "tiny")
        own = {parameter.data_ptr() for parameter in model.parameters()}
        held: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=torch.ones(8, 30, dtype=torch.long)).logits.sum()
        return sum(held.values())

    assert kept(again=True) < kept(again=False) / 4


def test_what_cannot_work_is_refused(
    tiny_bert: Path, corpus: Path, cats_and_dogs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(**options: object) -> None:
        chosen = {"method": "tamt-kd", "steps": 2, **SHORT, **options}
        train(
            model=str(tiny_bert), output=tmp_path / "run", corpus=[str(corpus)], activation_checkpointing=True, **chosen
        )

    with pytest.raises(UserError, match="is for methods that train, not omp"):
        search(method="omp")
    with pytest.raises(UserError, match="--activation-checkpointing exclude each other"):
        search(compile=True)
    model = load_classifier(str(tiny_bert), ["a", "b"])
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"tiny \(BertForSequenceClassification\) cannot compute its activations again"):
        checkpoint_activations(model, "tiny")
    monkeypatch.setattr(step_graph, "_gpu_is_there", lambda: True)
    with pytest.raises(UserError, match="give --no-cuda-graphs too"):
        search()
    with pytest.raises(UserError, match="give --no-cuda-graphs too"):
        finetune(
            "classification", str(tiny_bert), tmp_path / "run", activation_checkpointing=True, lr=1e-3, **cats_and_dogs
        )
    assert not (tmp_path / "run").exists()
