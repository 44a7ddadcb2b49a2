"""A reader of mask files written from docs/mask-format.md, with nothing of tamt or safetensors in it."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tamt.masks.file import FIELDS, MaskInfo, save_masks

PAGE = (Path(__file__).parents[2] / "docs" / "mask-format.md").read_text(encoding="utf-8")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:end]), content[end:]
    metadata = header.pop("__metadata__")
    assert (metadata["format"], metadata["format_version"]) == ("tamt-mask", "2")
    shapes, kept = json.loads(metadata["shapes"]), json.loads(metadata["kept"])
    assert header.keys() == shapes.keys() == kept.keys()
    told = {key: value for key, value in metadata.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    masks = {}
    for name in sorted(header):
        begin, stop = header[name]["data_offsets"]
        packed, entries = data[begin:stop], math.prod(shapes[name])
        assert header[name]["dtype"] == "U8"
        assert header[name]["shape"] == [len(packed)] == [-(-entries // 8)]
        digest.update(packed)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        assert not bits[entries:].any()
        masks[name] = bits[:entries].astype(bool).reshape(shapes[name])
        assert masks[name].sum() == kept[name]
    assert digest.hexdigest() == metadata["digest"]
    return masks, metadata


def write(path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.b.weight": (5, 7), "encoder.a.weight": (8, 4), "c.weight": (3, 3)}
    masks = {name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}
    save_masks(path, masks, MaskInfo("modèle", "tamt-kd", 0.7, 3, 150))
    return masks


def test_the_page_is_enough_to_read_a_mask(tmp_path) -> None:
    masks = write(tmp_path / "mask.safetensors")
    found, metadata = read(tmp_path / "mask.safetensors")
    assert found.keys() == masks.keys()
    assert all(np.array_equal(found[name], mask.numpy()) for name, mask in masks.items())
    assert (metadata["model"], metadata["seed"], metadata["step"]) == ("modèle", "3", "150")


def test_the_digest_of_the_page_covers_the_metadata(tmp_path) -> None:
    path = tmp_path / "mask.safetensors"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"tamt-kd", b"tamt-kz"))
    with pytest.raises(AssertionError):
        read(path)


def test_the_page_names_every_field() -> None:
    assert all(f"`{field}`" in PAGE for field in FIELDS)
