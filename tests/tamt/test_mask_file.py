"""The mask file: what goes in comes out, and what is broken is refused by name."""

import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import BertConfig, BertForMaskedLM

from tamt.masks import file as mask_file
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.masking import prunable_weights
from tamt.runtime.errors import UserError
from tamt.runtime.files import CannotWriteError

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


def test_the_same_masks_give_the_same_bytes(tmp_path: Path, masks) -> None:
    path = tmp_path / "mask.safetensors"
    written = set()
    for _ in range(5):
        save_masks(path, masks, INFO)
        written.add(path.read_bytes())
    (content,) = written
    assert int.from_bytes(content[:8], "little") % 8 == 0
    with safe_open(path, "np") as file:
        assert file.keys() == sorted(masks)


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


def rewrite(path: Path, **changed: str | None) -> None:
    """Change metadata of a mask file, None to leave one out, as one would who knows the format; the digest fits."""
    with safe_open(path, framework="np") as file:
        metadata = {**file.metadata(), **changed}
        bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    if "digest" not in changed:
        metadata["digest"] = mask_file._digest(metadata, bits)
    save_file(bits, path, metadata)


SHAPES = {"a.weight": [7, 5], "b.weight": [16, 8], "c.weight": [1, 1]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"digest": "0" * 64}, "digest is wrong"),
        ({"seed": None}, "metadata are not"),
        ({"colour": "red"}, "metadata are not"),
        ({"sparsity": "many"}, "many"),
        ({"step": "9" * 5000}, "damaged"),
        ({"shapes": "[" * 100_000}, "damaged"),
        ({"shapes": json.dumps({**SHAPES, "a.weight": [10**6, 10**6]})}, r"claims 1000000000000 entries"),
        ({"shapes": json.dumps({**SHAPES, "a.weight": [10**4, 10**4]})}, r"not held by 12500000 bytes"),
        ({"shapes": json.dumps({**SHAPES, "a.weight": [-7, -5]})}, "has no shape"),
        ({"shapes": json.dumps({**SHAPES, "a.weight": [35.0]})}, "has no shape"),
        ({"shapes": json.dumps({**SHAPES, "a.weight": []})}, "has no shape"),
        ({"shapes": json.dumps({**SHAPES, "d.weight": [1]})}, "matrices are not those"),
        ({"shapes": json.dumps({"a.weight": [7, 5]})}, "matrices are not those"),
        ({"shapes": json.dumps(SHAPES)[:-1] + ', "c.weight": [1, 1]}'}, "twice"),
        ({"kept": json.dumps(dict.fromkeys(SHAPES, 1))}, "numbers of ones"),
        ({"format_version": "1"}, "format version 1, this tamt reads 2"),
        ({"format_version": "9" * 10**6}, "format version 9"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path: Path, masks, changed: dict, message: str) -> None:
    path = tmp_path / "mask.safetensors"
    save_masks(path, masks, INFO)
    rewrite(path)
    load_masks(path)
    rewrite(path, **changed)
    with pytest.raises(UserError, match=message) as raised:
        load_masks(path)
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)


def test_ones_in_the_padding_are_refused(tmp_path: Path, masks) -> None:
    path = tmp_path / "mask.safetensors"
    save_masks(path, masks, INFO)
    with safe_open(path, framework="np") as file:
        bits = {name: file.get_tensor(name) for name in masks}
        metadata = file.metadata()
    bits["a.weight"][-1] |= 0x80  # of 35 entries
    save_file(bits, path, {**metadata, "digest": mask_file._digest(metadata, bits)})
    with pytest.raises(UserError, match=r"a\.weight has ones after its last entry"):
        load_masks(path)


def header(path: Path, text: str) -> None:
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"__metadata__": {"format": "tamt-mask", "format": "tamt-mask"}}',
        '{"__metadata__": {}, "__metadata__": {"format": "tamt-mask"}}',
        '{"__metadata__": {"format": 1}}',
        '{"__metadata__": []}',
        "[]",
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_headers_that_say_two_things_or_nothing_are_refused(tmp_path: Path, text: str) -> None:
    header(tmp_path / "mask.safetensors", text)
    with pytest.raises(UserError, match="damaged"):
        load_masks(tmp_path / "mask.safetensors")


@pytest.mark.parametrize("claim", ["header", "tensor"])
def test_a_header_that_claims_what_is_not_there_takes_no_memory(tmp_path: Path, claim: str) -> None:
    path = tmp_path / "mask.safetensors"
    if claim == "header":
        path.write_bytes((10**12).to_bytes(8, "little") + b"{}")
    else:
        fields = {**dict.fromkeys(mask_file.FIELDS, "1"), "format": "tamt-mask", "format_version": "2"}
        fields |= {"shapes": '{"a.weight": [1000000000]}', "kept": '{"a.weight": 1}'}
        tensor = {"dtype": "U8", "shape": [125_000_000], "data_offsets": [0, 125_000_000]}
        header(path, json.dumps({"__metadata__": fields, "a.weight": tensor}))
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged"):
        load_masks(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_an_inexact_mask_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    masks = {"a.weight": torch.arange(10) < 3, "b.weight": torch.arange(20).view(4, 5) < 7}
    save_masks(path, masks, INFO)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"mask of b\.weight keeps 7 entries where a sparsity of 0\.7 keeps 6"):
        save_masks(path, masks, INFO, exact=True)
    assert path.read_bytes() == before
    masks["b.weight"][1, 1] = False
    save_masks(path, masks, INFO, exact=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mask file"):
        load_masks(tmp_path / "none.safetensors")
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors")
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


@pytest.mark.parametrize(
    "content",
    [
        {"a.weight": torch.ones(1, dtype=torch.bool).expand(10**6, 10**6)},
        {"a.weight": torch.empty(10**6, 10**6, dtype=torch.bool, device="meta")},
        {"a.weight": torch.ones(3, 3, dtype=torch.bool).to_sparse()},
        {"a.weight": torch.ones(0, 3, dtype=torch.bool)},
        {"a.weight": torch.ones(3, dtype=torch.bool), "bert.a.weight": torch.zeros(3, dtype=torch.bool)},
        dict.fromkeys([f"{i}.weight" for i in range(1000)], torch.ones(1000, dtype=torch.bool)),
    ],
)
def test_a_mask_pt_that_claims_what_it_does_not_hold_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "mask.pt")
    with pytest.raises(UserError, match="does not hold each entry"):
        load_masks(tmp_path / "mask.pt")


def test_a_mask_pt_of_records_that_grow_is_refused(tmp_path: Path) -> None:
    content = {"a.weight": torch.zeros(10_000, dtype=torch.bool)}
    torch.save(content, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    load_masks(tmp_path / "plain.pt")
    with pytest.raises(UserError, match="cannot be read as a dict of tensors"):
        load_masks(tmp_path / "small.pt")


def save_old(content: object, path: Path) -> None:
    """As torch before 1.6 did."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_pt_of_torch_before_1_6_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    masks = {f"{name}.weight": (torch.arange(63).view(9, 7) % step == 0) for name, step in (("a", 2), ("b", 3))}
    save_old({f"module.bert.{name}": mask.to(dtype) for name, mask in masks.items()}, tmp_path / "mask.pt")
    found, _ = load_masks(tmp_path / "mask.pt")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_nothing_in_a_mask_pt_of_torch_before_1_6_is_executed(tmp_path: Path) -> None:
    save_old({"a.weight": Bomb(tmp_path / "executed")}, tmp_path / "mask.pt")
    with pytest.raises(UserError, match="nothing in it is executed"):
        load_masks(tmp_path / "mask.pt")
    assert not (tmp_path / "executed").exists()


def test_a_broken_mask_pt_of_torch_before_1_6_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mask.pt"
    save_old({"a.weight": torch.ones(1000, dtype=torch.bool)}, path)
    whole = path.read_bytes()
    count = b"M\xe8\x03"  # 1000, as the pickle has it: first of the storage, then of the tensor
    claims = whole.replace(count, b"J\xff\xff\xff\x7f", 1), whole.replace(count, b"\x8a\x06" + b"\xff" * 5 + b"\x7f", 1)
    for broken in (whole[:20], whole[:200], whole[:-1], whole[: -1000 - 8], b"\x80\x02" + whole, *claims):
        path.write_bytes(broken)
        tracemalloc.start()
        with pytest.raises(UserError, match=r"mask\.pt cannot be read as a dict of tensors") as error:
            load_masks(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64]
)
@pytest.mark.parametrize("name", ["bert.a.weight_mask", "module.bert.a.weight"])
def test_a_mask_pt_holds_zeros_and_ones_of_any_type(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.save({name: mask.to(dtype)}, tmp_path / "mask.pt")
    masks, info = load_masks(tmp_path / "mask.pt")
    assert torch.equal(masks["a.weight"], mask)
    assert info.sparsity == pytest.approx(1 - mask.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan"), 1 - 1e-7])
def test_a_mask_pt_with_other_values_is_refused(tmp_path: Path, value: float) -> None:
    torch.save({"a.weight": torch.tensor([[1.0, 0.0, value]])}, tmp_path / "mask.pt")
    with pytest.raises(UserError, match=r"holds other values than 0 and 1 in 'a.weight'"):
        load_masks(tmp_path / "mask.pt")


@pytest.mark.parametrize("name", ["mask.safetensors", "mask.pt"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=f"{name} is a pointer of Git LFS and not the file itself; run git lfs pull"):
        load_masks(tmp_path / name)


@pytest.mark.parametrize(
    "content", [{}, [1], {"a.weight": torch.full((3,), 0.5)}, {"a": torch.ones(3, dtype=torch.bool)}]
)
def test_a_mask_pt_of_anything_else_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "mask.pt")
    with pytest.raises(UserError, match=r"mask\.pt"):
        load_masks(tmp_path / "mask.pt")
