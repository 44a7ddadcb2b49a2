"""Checkpoints of torch.nn.utils.prune: read as a model and as a mask, and written, bit for bit."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune
from transformers import AutoModelForMaskedLM, PreTrainedModel

from tamt.cli import main
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.masking import Masks, prunable_modules, prunable_weights, random_masks
from tamt.models.language_model import load_masked_language_model
from tamt.models.loading import load_encoder
from tamt.runtime.errors import UserError
from tests.tamt.families import save_family

State = dict[str, torch.Tensor]


def pruned(folder: Path) -> tuple[PreTrainedModel, Masks]:
    """The model in a folder as torch.nn.utils.prune prunes it at random, and the masks."""
    model = AutoModelForMaskedLM.from_pretrained(folder)
    masks = random_masks(prunable_weights(model), 0.6, seed=0)
    for name, module in prunable_modules(model).items():
        prune.custom_from_mask(module, "weight", masks[f"{name}.weight"])
    return model, masks


def change(folder: Path, edit: Callable[[State], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def checkpoint(tiny_bert: Path, tmp_path: Path) -> tuple[Path, Masks]:
    """A folder as save_pretrained writes it of a pruned model, and the masks."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "pruned"))
    model, masks = pruned(tiny_bert)
    model.save_pretrained(folder)
    return folder, masks


def weights_of(model: PreTrainedModel) -> State:
    return {name: weight.detach() for name, weight in prunable_weights(model).items()}


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
def test_a_pruned_checkpoint_is_read_as_a_model_and_as_a_mask(kind: str, checkpoint, tiny_bert: Path) -> None:
    folder, masks = checkpoint
    file = folder / "model.safetensors"
    if kind != "safetensors":
        state = load_file(file)
        file.unlink()
        file = folder / "pytorch_model.bin"
        torch.save(state, file, _use_new_zipfile_serialization=kind == "bin")
    dense = weights_of(load_masked_language_model(str(tiny_bert)).model)
    for model in (load_masked_language_model(str(folder)).model, load_encoder(str(folder))[0]):
        for name, weight in weights_of(model).items():
            assert torch.equal(weight, torch.where(masks[name], dense[name], 0))
    assert not load_masked_language_model(str(folder)).fresh_head
    found, info = load_masks(file)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    assert info.method == "published"


@pytest.mark.parametrize("family", ["bert", "distilbert", "xlm", "jina", "eurobert", "albert"])
def test_an_export_to_prune_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", family)
    encoder = load_encoder(str(model))[0]
    masks = random_masks(prunable_weights(encoder), 0.6, seed=1)
    save_masks(tmp_path / "mask.safetensors", masks, MaskInfo(str(model), "rand", 0.6, seed=1, step=0))
    words = ["export", "--model", str(model), "--mask", str(tmp_path / "mask.safetensors"), "--output"]
    assert main([*words, str(tmp_path / "pruned"), "--format", "prune"]) == 0
    assert main([*words, str(tmp_path / "dense")]) == 0
    found, _ = load_masks(tmp_path / "pruned" / "model.safetensors")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    theirs, ours = (load_masked_language_model(str(tmp_path / kind), False).model for kind in ("dense", "pruned"))
    state = ours.state_dict()
    for name, tensor in theirs.base_model.state_dict().items():
        assert torch.equal(tensor, ours.base_model.state_dict()[name]), name
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_an_export_to_prune_loads_into_pruned_modules(tiny_bert, checkpoint, tmp_path, monkeypatch) -> None:
    folder, masks = checkpoint
    words = ["export", "--model", str(tiny_bert), "--mask", str(folder / "model.safetensors"), "--format", "prune"]
    assert main([*words, "--output", str(tmp_path / "kd-70")]) == 0
    page = (Path(__file__).parents[2] / "docs" / "mask-format.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "mask-format.md", "exec"), names)
    model = names["model"]
    model.eval()
    expected = pruned(tiny_bert)[0].eval()
    assert torch.equal(model.get_output_embeddings().weight, load_masked_language_model(str(tiny_bert)).decoder.weight)
    ids = torch.arange(5, 25).view(2, 10)
    hidden = [each.base_model(ids).last_hidden_state for each in (model, expected)]
    assert torch.equal(*hidden)
    module = model.base_model.encoder.layer[0].output.dense
    assert torch.equal(module.weight_mask.bool(), masks["encoder.layer.0.output.dense.weight"])
    prune.remove(module, "weight")
    assert torch.equal(module.weight != 0, masks["encoder.layer.0.output.dense.weight"])


NAME = "bert.encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop(f"{NAME}_mask"), f"holds {NAME}_orig but no {NAME}_mask; save the whole state dict"),
        (lambda state: state.pop(f"{NAME}_orig"), f"holds {NAME}_mask but no {NAME}_orig; save the whole state dict"),
        (
            lambda state: state.update({f"{NAME}_mask": torch.ones(3, 3)}),
            f"holds {NAME}_mask of shape [3, 3] for {NAME}_orig of shape [32, 64]; save",
        ),
        (lambda state: state[f"{NAME}_mask"].add_(0.5), f"holds other values than 0 and 1 in '{NAME}_mask'; save"),
    ],
    ids=["no mask", "no original", "shape", "values"],
)
def test_a_pruned_checkpoint_that_is_not_whole_is_refused(edit, message: str, checkpoint) -> None:
    folder, _ = checkpoint
    change(folder, edit)
    for read in (lambda: load_encoder(str(folder)), lambda: load_masks(folder / "model.safetensors")):
        with pytest.raises(UserError) as error:
            read()
        assert message in str(error.value)
        assert str(folder) in str(error.value)
