"""The reader of sparse files in docs/sparse-format.md, with nothing of tamt, torch or safetensors in it, reads ours."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tamt.masks.sparse_file import FIELDS, TYPES, save_sparse

PAGE = (Path(__file__).parents[2] / "docs" / "sparse-format.md").read_text(encoding="utf-8")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def read() -> Callable[[Path], dict[str, np.ndarray]]:
    names: dict = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "sparse-format.md", "exec"), names)
    return names["read"]


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(13, 11, generator=generator)
    pruned = weight * (torch.rand(13, 11, generator=generator) < 0.3)
    pruned[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    whole = {"positions": torch.arange(5)[None], "used": torch.tensor([True, False])}
    return {"encoder.é.weight": pruned, "dense.weight": weight, "bias": weight[0], "scale": weight[0, 0], **whole}


@pytest.mark.parametrize("values", TYPES)
def test_the_page_is_enough_to_read_a_model(values: str, state: State, read, tmp_path: Path) -> None:
    save_sparse(tmp_path / "sparse.safetensors", state, values)
    found = read(tmp_path / "sparse.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.to(TYPES[values]).float() if tensor.is_floating_point() else tensor
        assert np.array_equal(found[name], expected.numpy(), equal_nan=tensor.is_floating_point()), name
        assert found[name].dtype == expected.numpy().dtype


@pytest.mark.parametrize(("here", "there"), [(b'"I64"', b'"U64"'), (b"bias", b"bial"), (b"[13, 11]", b"[11, 13]")])
def test_the_digest_of_the_page_covers_the_header_and_the_data(
    here: bytes, there: bytes, state: State, read, tmp_path: Path
) -> None:
    path = tmp_path / "sparse.safetensors"
    save_sparse(path, state, "float32")
    content = path.read_bytes()
    assert here in content
    for broken in (content.replace(here, there), content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(AssertionError):
            read(path)


def test_the_page_names_every_field() -> None:
    assert all(f"`{field}`" in PAGE for field in FIELDS)
