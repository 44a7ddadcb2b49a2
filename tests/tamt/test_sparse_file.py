"""The sparse file: what goes in comes out, what is broken is refused by name, and it is as small as the page says."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from tamt.masks import sparse_file
from tamt.masks.masking import keep_of, prunable_weights
from tamt.masks.sparse_file import TYPES, load_sparse_state, save_sparse, sparse_bytes
from tamt.runtime.errors import UserError
from tamt.runtime.tensor_files import METADATA, join_header, split_header

State = dict[str, torch.Tensor]
WEIGHT, OTHER = "layer.0.weight", "layer.1.weight"
PAGE = (Path(__file__).parents[2] / "docs" / "sparse-format.md").read_text(encoding="utf-8")


@pytest.fixture
def state() -> State:
    """Two sparse matrices, one of them of 35 entries, a dense matrix, a vector with zeros, and whole numbers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {WEIGHT: (7, 5), OTHER: (16, 8)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for weight in state.values():
        weight *= torch.rand(weight.shape, generator=generator) < 0.3
        weight += 0.0  # no negative zeros
    return {**state, "dense.weight": torch.ones(3, 4), "bias": torch.zeros(9), "positions": torch.arange(4)}


@pytest.fixture
def path(state: State, tmp_path: Path) -> Path:
    save_sparse(tmp_path / "sparse.safetensors", state, "float32")
    return tmp_path / "sparse.safetensors"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes() and one.shape == other.shape


def test_float32_is_exact_for_every_kept_value(state: State, tmp_path: Path) -> None:
    strange = [math.nan, math.inf, -math.inf, 1e-45, 3.4e38, 0.1]
    state[WEIGHT][0] = torch.tensor(strange[:5])
    state[WEIGHT][1, 0] = strange[5]
    state[WEIGHT].view(torch.int32)[2, 0] = 0x7FC00001  # a NaN with a payload
    save_sparse(tmp_path / "sparse.safetensors", state, "float32")
    found = load_sparse_state(tmp_path / "sparse.safetensors")
    assert found.keys() == state.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("values", "relative", "smallest"), [("float16", 2**-11, 2**-14), ("bfloat16", 2**-8, 2**-126)]
)
def test_half_types_round_as_the_page_says(values: Any, relative: float, smallest: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 100, generator=generator) * torch.logspace(-4, 2, 100)
    weight[torch.rand(200, 100, generator=generator) < 0.7] = 0.0
    save_sparse(tmp_path / "sparse.safetensors", {"w": weight, "bias": weight[0]}, values)
    found = load_sparse_state(tmp_path / "sparse.safetensors")
    assert same_bits(found["w"], weight.to(TYPES[values]).float()), "to nearest, ties to even"
    assert same_bits(found["bias"], weight[0].to(TYPES[values]).float())
    error = (found["w"] - weight).abs()
    assert (error <= relative * weight.abs().clamp(min=smallest)).all()
    assert error.max() > 0
    exponents = {2**-11: "2⁻¹¹", 2**-8: "2⁻⁸"}
    assert exponents[relative] in PAGE


def test_the_same_tensors_give_the_same_bytes(path: Path, state: State, tmp_path: Path) -> None:
    for _ in range(3):
        other = tmp_path / "other.safetensors"
        save_sparse(other, dict(reversed(state.items())), "float32")
        assert other.read_bytes() == path.read_bytes()
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_negative_zero_is_a_zero(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, -0.0, 0.0, -0.0]]).expand(8, 4).contiguous()
    assert save_sparse(tmp_path / "s.safetensors", {"w": weight}, "float32").sparsity == 0.75
    assert same_bits(load_sparse_state(tmp_path / "s.safetensors")["w"], weight + 0.0)


@pytest.mark.parametrize("zeros", [0, 1, 20, 64])
def test_what_is_smaller_is_stored(zeros: int, tmp_path: Path) -> None:
    weight = torch.ones(64)
    weight[:zeros] = 0
    sizes = save_sparse(tmp_path / "s.safetensors", {"w": weight.view(8, 8), "bias": weight}, "float16")
    assert (sizes.matrices, sizes.sparsity) == (1, zeros / 64)
    assert sizes.sparse == (zeros * 2 > 8), "two bytes a zero against the eight of the mask"
    assert sizes.dense_bytes == 4 * 128
    assert torch.equal(load_sparse_state(tmp_path / "s.safetensors")["w"], weight.view(8, 8))


def test_tensors_that_share_memory_are_saved_for_themselves(tmp_path: Path) -> None:
    weight = torch.ones(4, 4)
    save_sparse(tmp_path / "s.safetensors", {"a": weight, "b": weight, "c": weight.t()}, "float32")
    assert load_sparse_state(tmp_path / "s.safetensors").keys() == {"a", "b", "c"}


def test_a_number_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    for weight in (torch.tensor([65520.0]), torch.tensor([[-7e4, *[0.0] * 9]])):
        with pytest.raises(
            UserError, match=r"w holds [67].*e\+04, which is too large for float16; give --values bfloat16"
        ):
            save_sparse(tmp_path / "s.safetensors", {"w": weight}, "float16")
    assert not any(tmp_path.iterdir())
    save_sparse(tmp_path / "s.safetensors", {"w": torch.tensor([65519.0, math.inf])}, "float16")
    assert load_sparse_state(tmp_path / "s.safetensors")["w"].tolist() == [65504.0, math.inf]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.ones(2, dtype=torch.complex64)}, "cannot hold w, which is torch.complex64"),
        ({"w": torch.eye(64), "w.mask": torch.ones(2)}, r"two tensors of the name w\.mask"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(state: State, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        save_sparse(tmp_path / "s.safetensors", state, "float32")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 7, 100, -1, -60])
def test_a_truncated_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"sparse\.safetensors is damaged"):
        load_sparse_state(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = len(content[8 : 8 + length].rstrip(b" "))
    places = [*range(8, 8 + text, 7), *range(8 + length, len(content), 5)]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError):
            load_sparse_state(path)


def rewrite(path: Path, change: Callable[[dict[str, Any], bytearray], object], digest: bool = True) -> None:
    """Change header and data of a sparse file, as one would who knows the format; the digest fits."""
    header, data = split_header(path.read_bytes())
    content = bytearray(data)
    change(header, content)
    if digest:
        header[METADATA]["digest"] = sparse_file._digest(header, memoryview(content))
    path.write_bytes(join_header(header, memoryview(content)))


def metadata(**values: Any) -> Callable[[dict[str, Any], bytearray], object]:
    """Puts these into the metadata: texts as they are, others merged into the JSON that is there; None leaves out."""

    def change(header: dict[str, Any], _: bytearray) -> None:
        for key, value in values.items():
            if value is None:
                del header[METADATA][key]
            elif isinstance(value, str):
                header[METADATA][key] = value
            else:
                header[METADATA][key] = json.dumps({**json.loads(header[METADATA][key]), **value})

    return change


def entry(name: str, **values: Any) -> Callable[[dict[str, Any], bytearray], object]:
    return lambda header, _: header[name].update(values)


def flip(name: str, byte: int, bit: int) -> Callable[[dict[str, Any], bytearray], None]:
    def change(header: dict[str, Any], data: bytearray) -> None:
        begin, stop = header[name]["data_offsets"]
        data[range(begin, stop)[byte]] ^= 1 << bit

    return change


def drop(name: str) -> Callable[[dict[str, Any], bytearray], None]:
    return lambda header, _: header.pop(name)


BROKEN: dict[str, tuple[Callable[[dict[str, Any], bytearray], object], str]] = {
    "a field is missing": (metadata(kept=None), "metadata are not"),
    "a field is new": (metadata(colour="red"), "metadata are not"),
    "another format": (metadata(format="tamt-mask"), "no sparse model"),
    "another version": (metadata(format_version="2"), "format version 2, this tamt reads 1"),
    "a type not known": (metadata(values="float8"), "values are 'float8', which is not one of float32, float16"),
    "another type": (metadata(values="float16"), "is not F16 of shape"),
    "no JSON": (metadata(shapes="[" * 100_000), "damaged"),
    "a shape of one extent": (metadata(shapes={WEIGHT: [35]}), "no shape of a matrix"),
    "a negative shape": (metadata(shapes={WEIGHT: [-7, -5]}), "no shape of a matrix"),
    "a shape of floats": (metadata(shapes={WEIGHT: [7.0, 5.0]}), "no shape of a matrix"),
    "a huge shape": (metadata(shapes={WEIGHT: [10**6, 10**6]}), "claims 1000000000000 entries"),
    "a large shape": (metadata(shapes={WEIGHT: [10**4, 10**4]}), rf"{WEIGHT}\.mask is not U8 of shape \[12500000\]"),
    "more kept than entries": (metadata(kept={WEIGHT: 36}), "keeps 36 of 35 entries"),
    "a negative count": (metadata(kept={WEIGHT: -1}), "keeps -1 of 35 entries"),
    "a count that is no number": (metadata(kept={WEIGHT: True}), "keeps True of 35 entries"),
    "a wrong count": (metadata(kept={WEIGHT: 3}), rf"{WEIGHT}\.values is not F32 of shape \[3\]"),
    "a matrix without count": (metadata(shapes={"more": [2, 2]}), "not of the same matrices"),
    "a matrix without tensors": (metadata(shapes={"more": [2, 2]}, kept={"more": 1}), r"more\.mask is missing"),
    "no values": (drop(f"{WEIGHT}.values"), rf"{WEIGHT}\.values is missing"),
    "no mask": (drop(f"{OTHER}.mask"), rf"{OTHER}\.mask is missing"),
    "values of whole numbers": (entry(f"{WEIGHT}.values", dtype="I32"), "is not F32"),
    "a dense tensor of another type": (entry("bias", dtype="F64", shape=[4]), "bias is F64 in a file of float32"),
    "a dense tensor larger than its bytes": (entry("bias", shape=[10**9]), "damaged"),
    "bytes that overlap": (entry("bias", data_offsets=[0, 36]), "damaged"),
    "bytes beyond the end": (entry("bias", data_offsets=[10**9, 10**9 + 36]), "damaged"),
    "an entry that is no tensor": (lambda header, _: header.update(bias=7), "describes no tensors"),
    "a tensor dense and sparse": (
        lambda header, _: header.update({WEIGHT: header.pop("bias")}),
        "both dense and sparse",
    ),
    "a bit beyond the end": (flip(f"{WEIGHT}.mask", -1, 7), "ones after its last entry"),
    "a mask with another number of ones": (flip(f"{OTHER}.mask", 3, 2), "ones and not the"),
    "a truncated value block": (lambda _, data: data.__delitem__(slice(-8, None)), "damaged"),
    "bytes after the end": (lambda _, data: data.extend(b"12345678"), "damaged"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(kind: str, path: Path) -> None:
    rewrite(path, lambda header, data: None)
    load_sparse_state(path)
    change, message = BROKEN[kind]
    rewrite(path, change)
    with pytest.raises(UserError, match=message) as raised:
        load_sparse_state(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_wrong_digest_is_refused(path: Path) -> None:
    rewrite(path, flip(f"{WEIGHT}.values", 3, 2), digest=False)
    with pytest.raises(UserError, match="its digest is wrong"):
        load_sparse_state(path)


def test_names_that_are_there_twice_are_refused(path: Path) -> None:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = content[8:end].rstrip()[:-1] + b', "bias": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    with pytest.raises(UserError, match="names something twice"):
        load_sparse_state(path)


def test_a_file_that_claims_what_is_not_there_takes_no_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = 1 << 30
    rewrite(path, metadata(shapes={WEIGHT: [1 << 15, 1 << 15]}, kept={WEIGHT: entries}))
    rewrite(path, entry(f"{WEIGHT}.mask", shape=[entries // 8], data_offsets=[0, entries // 8]))
    rewrite(path, entry(f"{WEIGHT}.values", shape=[entries], data_offsets=[0, entries * 4]))
    for name in ("_check_mask", "_widened"):  # which all tensors pass
        monkeypatch.setattr(sparse_file, name, lambda *_: pytest.fail("a tensor is read"))
    with pytest.raises(UserError, match="damaged"):
        load_sparse_state(path)


def test_no_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sparse file"):
        load_sparse_state(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("sparsity", "smaller", "goal"), [(0.7, 5.5, 5.4), (0.8, 7.6, 7.5), (0.9, 12.3, 12.0)], ids=["70", "80", "90"]
)
def test_bert_base_in_float16_is_as_small_as_the_page_says(sparsity: float, smaller: float, goal: float) -> None:
    with torch.device("meta"):
        entries = [weight.numel() for weight in prunable_weights(BertModel(BertConfig())).values()]
    size = sum(sparse_bytes(n, keep_of(n, sparsity), "float16") for n in entries)
    assert 4 * sum(entries) / size >= goal
    assert round(4 * sum(entries) / size, 1) == smaller
    assert re.search(rf"\| {sparsity:.0%} \|.*\({smaller} ×\) \|".replace("%", " %"), PAGE)


def test_a_written_file_has_that_size_and_a_small_header(tmp_path: Path) -> None:
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    weight.view(-1)[: int(0.8 * weight.numel())] = 0
    sizes = save_sparse(tmp_path / "s.safetensors", {"w": weight}, "float16")
    assert 0 <= sizes.file_bytes - sparse_bytes(10**6, 200_000, "float16") < 1000
