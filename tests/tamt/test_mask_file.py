"""The mask file: what goes in comes out, and what is broken is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from tamt.errors import UserError
from tamt.files import CannotWriteError
from tamt.mask_file import MaskInfo, load_masks, save_masks
from tamt.masking import prunable_weights

INFO = MaskInfo(model="bert-base-uncased", method="tamt-kd", sparsity=0.7, seed=3, step=150)


@pytest.fixture
def masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) < 0.3
        for name, shape in {"a.weight": (7, 5), "b.weight": (16, 8), "c.weight": (1, 1)}.items()
    }


def test_round_trip(tmp_path: Path, masks) -> None:
    save_masks(tmp_path / "mask.safetensors", masks, INFO)
    loaded, info = load_masks(tmp_path / "mask.safetensors")
    assert info == INFO
    assert loaded.keys() == masks.keys()
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


def test_bert_base_takes_at_most_13_7_megabytes(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: w.shape for name, w in prunable_weights(BertForMaskedLM(BertConfig())).items()}
    path = tmp_path / "mask.safetensors"
    save_masks(path, {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}, INFO)
    assert path.stat().st_size <= 13_700_000


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, masks, monkeypatch) -> None:
    path = tmp_path / "mask.safetensors"
    save_masks(path, masks, INFO)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CannotWriteError, match="mask.safetensors cannot be written .no space"):
        save_masks(path, {name: ~mask for name, mask in masks.items()}, INFO)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mask.safetensors"]


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, masks, size: int) -> None:
    path = tmp_path / "mask.safetensors"
    save_masks(path, masks, INFO)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"mask\.safetensors is damaged"):
        load_masks(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path, masks) -> None:
    path = tmp_path / "mask.safetensors"
    save_masks(path, masks, INFO)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_masks(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mask file"):
        load_masks(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no mask"):
        load_masks(tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", ["weight", "weight_mask"])
@pytest.mark.parametrize("prefix", ["bert.", "roberta.", "module.bert.", ""])
def test_the_published_mask_pt(tmp_path: Path, prefix: str, suffix: str) -> None:
    mask = torch.eye(6, dtype=torch.bool)
    torch.save({f"{prefix}encoder.layer.0.output.dense.{suffix}": mask}, tmp_path / "mask.pt")
    masks, info = load_masks(tmp_path / "mask.pt")
    assert list(masks) == ["encoder.layer.0.output.dense.weight"]
    assert torch.equal(masks["encoder.layer.0.output.dense.weight"], mask)
    assert info.method == "published"
    assert info.sparsity == pytest.approx(5 / 6, abs=1e-5)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "executed"))


def test_nothing_in_a_mask_pt_is_executed(tmp_path: Path) -> None:
    torch.save({"a.weight": Bomb(tmp_path / "executed")}, tmp_path / "mask.pt")
    with pytest.raises(UserError, match="nothing in it is executed"):
        load_masks(tmp_path / "mask.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{}, [1], {"a.weight": torch.ones(3)}, {"a": torch.ones(3, dtype=torch.bool)}])
def test_a_mask_pt_of_anything_else_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "mask.pt")
    with pytest.raises(UserError, match=r"mask\.pt"):
        load_masks(tmp_path / "mask.pt")
