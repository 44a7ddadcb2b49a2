"""Fine-tuning that trains the kept weights only: the losses of the dense one, and a dense model with exact zeros."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

import tamt_kernels as tk
from tamt.cli import main, parse
from tamt.finetuning import sparse
from tamt.finetuning.finetune import finetune
from tamt.finetuning.sparse import train_kept_only
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.masking import apply_masks, magnitude_masks, packed_masks, prunable_weights
from tamt.models.task_models import load_classifier
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute
from tamt.training.optimizer import make_optimizer
from tamt.training.run_folder import read_yaml
from tests.tamt.families import FAMILIES, save_family

SHORT = {"task": "classification", "epochs": 1, "batch_size": 8, "lr": 1e-3, "log_every": 1, "eval_every": 10}


def write_mask(model: Path, path: Path, sparsity: float = 0.7, **masked: bool) -> Path:
    masks = magnitude_masks(prunable_weights(AutoModelForMaskedLM.from_pretrained(model), **masked), sparsity)
    save_masks(path, masks, MaskInfo(str(model), "omp", sparsity, seed=0, step=0))
    return path


def test_the_losses_of_50_steps_are_those_of_the_dense_run(
    tiny_bert: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, losses_of: Callable
) -> None:
    mask = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    options = {**SHORT, "model": str(tiny_bert), "mask": mask, "epochs": 3, "weight_decay": 0.1}
    rows = {}
    for chosen in ("off", "on"):
        output = tmp_path / chosen
        rows[chosen] = finetune(sparse=chosen, output=output, **options, **cats_and_dogs)["results"][0]
        assert read_yaml(output / "config.yaml")["sparse"] == chosen
    dense, kept_only = (losses_of(tmp_path / chosen) for chosen in ("off", "on"))
    assert len(dense) >= 50
    assert kept_only == pytest.approx(dense, rel=1e-3, abs=1e-5)
    assert kept_only[:10] == pytest.approx(dense[:10], rel=1e-5)
    for key in ("score", "best_step", "final_score", "dev"):
        assert rows["on"][key] == rows["off"][key]
    found, expected = (load_file(tmp_path / chosen / "model" / "model.safetensors") for chosen in ("on", "off"))
    assert found.keys() == expected.keys()
    masks, _ = load_masks(mask)
    for name, kept in masks.items():
        weight = found[f"bert.{name}"]
        assert (weight[~kept] == 0).all()
        torch.testing.assert_close(weight, expected[f"bert.{name}"], rtol=1e-3, atol=1e-5)
    files = [{path.name for path in (tmp_path / chosen / "model").iterdir()} for chosen in ("on", "off")]
    assert files[0] == files[1]
    config = [(tmp_path / chosen / "model" / "config.json").read_text() for chosen in ("on", "off")]
    assert config[0] == config[1]
    predictions = [(tmp_path / chosen / "predictions.jsonl").read_text().splitlines() for chosen in ("on", "off")]
    labels = [[json.loads(line)["prediction"] for line in lines] for lines in predictions]
    assert labels[0] == labels[1]


def test_norm_and_update_are_those_of_dense_gradients_that_are_pruned(tiny_bert: Path, tmp_path: Path) -> None:
    masks, _ = load_masks(write_mask(tiny_bert, tmp_path / "mask.safetensors"))
    norms, states = [], []
    for kept_only in (False, True):
        torch.manual_seed(0)
        model = load_classifier(str(tiny_bert), ["a", "b"]).eval()
        apply_masks(model, masks)
        pruned = (train_kept_only if kept_only else packed_masks)(model, masks)
        assert len(pruned) == (0 if kept_only else 13)
        optimizer, _ = make_optimizer(model.parameters(), 1e-2, 5, 0.1, pruned)
        (100 * model(input_ids=torch.arange(5, 17).view(2, 6), labels=torch.tensor([0, 1])).loss).backward()
        norms.append(float(optimizer.step(scale=torch.ones(()))))
        states.append(sum(tensor.numel() for state in optimizer.state.values() for tensor in state.values()))
        layer = model.bert.encoder.layer[1].output.dense
        weight = layer.weight.to_dense() if kept_only else layer.weight
        norms.append(float(weight.detach().norm()))
    assert norms[0] > 1, "so that it is clipped"
    assert norms[2:] == pytest.approx(norms[:2], rel=1e-5)
    assert states[1] < 0.5 * states[0]


def interrupted(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next fine-tuning end after this step."""
    from tamt.finetuning.loop import FineTuning

    after_step = FineTuning.after_step

    def stop(self: Any, done: int, losses: Any) -> None:
        after_step(self, done, losses)
        if done == step:
            monkeypatch.setattr(FineTuning, "after_step", after_step)
            raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "after_step", stop)


def test_a_run_that_began_sparse_is_resumed_sparse(
    tiny_bert: Path,
    cats_and_dogs: dict[str, Path],
    tmp_path: Path,
    losses_of: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    options = {**SHORT, "model": str(tiny_bert), "mask": mask, "save_every": 5, **cats_and_dogs}
    finetune(sparse="on", output=tmp_path / "alone", **options)
    interrupted(12, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        finetune(sparse="on", output=tmp_path / "run", **options)
    with pytest.raises(UserError, match="sparse = 'on', not 'off'"):
        finetune(sparse="off", output=tmp_path / "run", resume=True, **options)
    with monkeypatch.context() as newer:
        newer.setattr("tamt.finetuning.loop.SPARSE_LAYOUT", 2)
        with pytest.raises(UserError, match="run was begun by a version of tamt that orders sparse weights otherwise"):
            finetune(output=tmp_path / "run", resume=True, **options)
    finetune(output=tmp_path / "run", resume=True, **options)  # auto, which TAMT_SPARSE turns off in a new run
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "alone")
    found, expected = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("run", "alone"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(("dense", "skipping", "chosen"), [(2.0, 1.0, "on"), (1.0, 0.95, "off"), (1.0, 2.0, "off")])
def test_auto_is_what_was_measured_to_be_faster(
    dense: float,
    skipping: float,
    chosen: str,
    tiny_bert: Path,
    cats_and_dogs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(sparse.VARIABLE)
    monkeypatch.setattr(sparse, "_times", lambda *_: (dense, skipping))
    options = {**SHORT, "model": str(tiny_bert), "mask": write_mask(tiny_bert, tmp_path / "mask"), **cats_and_dogs}
    finetune(output=tmp_path / "run", train_samples=8, **options)
    assert read_yaml(tmp_path / "run" / "config.yaml")["sparse"] == chosen
    why = "gain less than 10%" if skipping == 0.95 else "are"
    assert capsys.readouterr().err.count(f"sparse {chosen}, as sparse products {why}") == 1
    options.pop("mask")
    finetune(output=tmp_path / "full", train_samples=8, **options)
    assert read_yaml(tmp_path / "full" / "config.yaml")["sparse"] == "off"


@pytest.mark.parametrize(
    ("device", "said"), [("cpu", "sparse off, as it is for fp32 and this run computes in bf16"), ("cuda", "")]
)
def test_a_run_that_trains_dense_for_its_precision_says_so_on_a_cpu(device: str, said: str) -> None:
    options, _ = parse("finetune", ["--task", "sst2", "--model", "bert", "--data-dir", "glue", "--mask", "mask"])
    compute = Compute(torch.device("cpu"), "bf16")
    compute.device = torch.device(device)
    masks = {"weight": torch.ones(2, 2, dtype=torch.bool)}
    assert sparse.choose_sparse(options, compute, torch.nn.Linear(2, 2), masks, 8) == ("off", said)


def test_the_products_of_all_masked_layers_are_measured(tiny_bert: Path, tmp_path: Path) -> None:
    masks, _ = load_masks(write_mask(tiny_bert, tmp_path / "mask"))
    model = load_classifier(str(tiny_bert), ["a", "b"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense, skipping = sparse.measure(model, masks, 16)
    assert 0 < dense < 60
    assert 0 < skipping < 60
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_computes_the_same(family: str, tmp_path: Path) -> None:
    path = save_family(tmp_path / "model", family)
    outputs, gradients = [], []
    for kept_only in (False, True):
        torch.manual_seed(0)
        model = load_classifier(str(path), ["a", "b"]).eval()
        masks = magnitude_masks(prunable_weights(model), 0.6)
        apply_masks(model, masks)
        if kept_only:
            assert train_kept_only(model, masks) == []
            assert any(isinstance(module, tk.SparseLinear) for module in model.modules())
        output = model(input_ids=torch.arange(5, 21).view(2, 8)).logits
        outputs.append(output.detach())
        output.square().sum().backward()
        grads = [p.grad for name, p in model.named_parameters() if p.dim() == 1 and not name.endswith(".values")]
        gradients.append([grad for grad in grads if grad is not None])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert len(gradients[0]) > 4
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_run_sparse_is_one_sentence(
    tiny_bert: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    files = [f"--{name.replace('_', '-')}={path}" for name, path in cats_and_dogs.items()]
    words = ["finetune", "--task", "classification", "--model", str(tiny_bert), "--output", str(tmp_path / "run")]
    for more, message in (
        (["--sparse", "on"], "--sparse on needs a --mask"),
        (["--sparse", "yes", "--mask", str(mask)], "not one of auto, on, off"),
        (
            ["--sparse", "on", "--mask", str(mask), "--precision", "bf16"],
            "this run computes in bf16 on a CPU; give --precision",
        ),
    ):
        capsys.readouterr()
        assert main([*words, *files, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()
