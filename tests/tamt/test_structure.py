"""Structured tickets on the tiny BERT: every method, their files, what uses them, and what is refused."""

from pathlib import Path

import pytest

from tamt.masks.file import load_masks
from tamt.masks.masking import keep_of
from tamt.runtime.structure import Structure
from tamt.search.train import train

ALL = "ffn:0.75,heads:0.5,layers:0.5,hidden:0.5"


@pytest.fixture
def run(tmp_path: Path, corpus: Path, tiny_bert: Path):
    """Call train on the tiny model; options given win."""

    def call(method: str, output: str = "run", **options) -> dict:
        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "steps": 6, **options}
        if method == "tamt":
            settings.setdefault("objective", "kd:1,attention:1,logits:0.5")
        return train(method=method, output=tmp_path / output, **settings)["results"][-1]

    return call


@pytest.mark.parametrize("method", ["tamt-kd", "tamt-mlm", "tamt", "omp", "rand"])
@pytest.mark.parametrize("structure", ["ffn:0.75", "heads:0.5", "layers:0.5", "heads:0.5,hidden:0.5", ALL])
def test_every_method_keeps_exactly_its_groups(method, structure, run, tmp_path: Path) -> None:
    result = run(method, structure=structure)
    masks, info = load_masks(tmp_path / "run" / "mask.safetensors")
    sizes = {"ffn.0": 64, "ffn.1": 64, "heads.0": 2, "heads.1": 2, "layers": 2, "hidden": 32}
    parsed = Structure.parse(structure)
    assert {name: len(mask) for name, mask in masks.items()} == {
        name: size for name, size in sizes.items() if name.partition(".")[0] in parsed.kinds
    }
    assert all(int(mask.sum()) == keep_of(len(mask), parsed.share(name)) for name, mask in masks.items())
    assert info.structure == result["structure"] == structure
    assert 0 < result["kd_loss"] < 2
    settings = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert f"structure: {structure}" in settings
