"""The mask file: one bit an entry in a safetensors container, and the metadata that says what it is."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

import tamt_kernels as tk
from tamt.masks.hub import download, is_on_hub
from tamt.masks.masking import Masks, Sparsity, is_exact, keep_of, share_of, sparsity_from, sparsity_of
from tamt.masks.prune_format import MASK, as_mask, is_pruned, pruned_names
from tamt.methods import FULL, PUBLISHED
from tamt.runtime.choices import parse_pattern
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.runtime.structure import Structure, kind_of
from tamt.runtime.tensor_files import METADATA, check_version, read_header, read_state, reproducible, unique_object
from tamt.runtime.untrusted import check_pulled
from tamt_kernels.backend.checks import MAX_ENTRIES

MASK_FILE = "mask.safetensors"
"""The mask of a run, in its folder."""
TORCH_SUFFIXES = {".pt", ".bin", ".pth"}
"""Of files of torch, such as the published masks."""
FORMAT = "tamt-mask"
VERSION = 2
FIELDS = {"format", "format_version", "model", "method", "sparsity", "seed", "step", "shapes", "kept", "digest"}
PUBLISHED_PREFIXES = ("module.", "bert.", "roberta.", "distilbert.", "electra.")
"""Of names in a file that has none of an embedding."""
EMBEDDINGS = re.compile(r"((?:\w+\.)*?)embed")


@dataclass(frozen=True)
class MaskInfo:
    """Where a mask comes from: model (name or folder), method, sparsity asked for (0 to 1; the highest of a structure),
    seed, optimizer step; and the pattern, such as "2:4", or the structure, such as "ffn:0.5", if it has one."""

    model: str
    method: str
    sparsity: float
    seed: int
    step: int
    pattern: str | None = None
    structure: str | None = None

    @classmethod
    def of(cls, model: str, method: str, sparsity: Sparsity, seed: int, step: int) -> "MaskInfo":
        """The info of masks of this sparsity, pattern or structure."""
        if isinstance(sparsity, tk.Pattern):
            return cls(model, method, (sparsity.m - sparsity.n) / sparsity.m, seed, step, pattern=str(sparsity))
        if isinstance(sparsity, Structure):
            return cls(model, method, sparsity.most, seed, step, structure=str(sparsity))
        return cls(model, method, sparsity, seed, step)

    @property
    def pruned(self) -> Sparsity:
        """How much the masks prune."""
        return sparsity_from(self.pattern, self.structure, self.sparsity)


def mask_file(path: Path | None) -> Path | None:
    """A mask file, also of a run folder, so that its mask has one name; None for the full model."""
    return path / MASK_FILE if path is not None and path.is_dir() else path


def mask_in_row(path: Path | None, masks: Masks, info: MaskInfo | None) -> dict[str, Any]:
    """What a row of results says of a mask, or of the full model where there is none."""
    return {
        "method": info.method if info else FULL,
        "sparsity": round(sparsity_of(masks), 6) if masks else 0.0,
        "mask": str(path) if path else None,
        "mask_seed": info.seed if info else None,
        "mask_step": info.step if info else None,
        "mask_digest": digest_of(pack_masks(masks, info)) if info else None,
        **({"structure": info.structure} if info and info.structure else {}),
    }


@dataclass(frozen=True)
class PackedMasks:
    """The masks of a file as the bits that it holds, an eighth of the memory of bool tensors.

    Attributes:
        bits: uint8 [⌈n/8⌉] a matrix; bit i % 8 of byte i // 8 is the entry with flat index i, the padding bits are 0.
        shapes: the shape of each matrix.
        kept: how many entries of each matrix are kept.
        info: where the masks come from.
    """

    bits: dict[str, NDArray[np.uint8]]
    shapes: dict[str, tuple[int, ...]]
    kept: dict[str, int]
    info: MaskInfo

    def sparsity(self, *names: str) -> float:
        """The share of zeros in these matrices together, all of them by default."""
        chosen = names or tuple(self.shapes)
        return 1 - sum(self.kept[name] for name in chosen) / sum(math.prod(self.shapes[name]) for name in chosen)


def pack_masks(masks: Mapping[str, Tensor], info: MaskInfo) -> PackedMasks:
    """Pack bool masks; see `PackedMasks`."""
    return PackedMasks(
        bits={name: tk.pack_mask(mask).cpu().numpy() for name, mask in masks.items()},
        shapes={name: tuple(mask.shape) for name, mask in masks.items()},
        kept={name: int(mask.sum()) for name, mask in masks.items()},
        info=info,
    )


def digest_of(packed: PackedMasks) -> str:
    """The SHA-256 of the names, shapes and bits of masks, wherever they come from, in hexadecimal digits."""
    return _digest({"shapes": json.dumps(packed.shapes, sort_keys=True)}, packed.bits)


def save_masks(path: Path, masks: Mapping[str, Tensor], info: MaskInfo, exact: bool = False) -> None:
    """Write masks to `path`, atomically: the file is there whole or not at all.

    Each mask is stored as ⌈n/8⌉ bytes, bit i % 8 of byte i // 8 the entry with flat index i; BERT-base's 73 matrices
    take 13.5 MB. The metadata holds the format, its version, `info`, the shape of every matrix and the number of its
    ones as JSON, and a SHA-256 over all of this and the bits. The same masks give the same bytes.

    Args:
        path: replaced if it exists.
        masks: bool tensors by name.
        info: where they come from.
        exact: write nothing unless every mask has exactly the ones of `info.pruned`, see `is_exact`.

    Raises:
        UserError: a mask is not `exact`.
        CannotWriteError: see `write_atomically`.
    """
    packed = pack_masks(masks, info)
    for name, kept in packed.kept.items():
        if exact and not is_exact(name, masks[name], info.pruned):
            raise UserError(
                f"{path} is not written: its mask of {name} keeps {kept} entries where {_due(info)} keeps "
                f"{_keep_of(name, masks[name].numel(), info)}, which is a fault of tamt or of this machine; report it, "
                "and continue with --resume"
            )
    save_packed(path, packed)


def save_packed(path: Path, packed: PackedMasks) -> None:
    """Write packed masks to `path` as `save_masks` does. Raises CannotWriteError, see `write_atomically`."""
    write_atomically(path, as_bytes(packed))


def as_bytes(packed: PackedMasks) -> bytes:
    """The content of the mask file of packed masks; see `save_masks`."""
    metadata = {key: str(value) for key, value in asdict(packed.info).items() if value is not None}
    metadata |= {
        "format": FORMAT,
        "format_version": str(VERSION),
        "shapes": json.dumps(packed.shapes),
        "kept": json.dumps(packed.kept),
    }
    metadata["digest"] = _digest(metadata, packed.bits)
    return reproducible(save(packed.bits, metadata))


def load_masks(path: Path) -> tuple[Masks, MaskInfo]:
    """Read a mask file: ours (`.safetensors`), the `mask.pt` of the paper's published code, or a pruned checkpoint.

    A path `hub:USER/REPO` is the mask file of that repository, which is downloaded once; a folder is that of a run.
    A `.pt` file is a dict of tensors, bool or of zeros and ones in another type as those of torch.nn.utils.prune, under
    names that end in `.weight` or `.weight_mask`; it is read with
    `weights_only=True`, so nothing in it is executed. Its origin is not recorded: method "published", seed and step 0.
    The state dict of a model that torch.nn.utils.prune has pruned, also in a `.safetensors` file, gives its masks.

    Nothing is believed: names, sizes, shapes and counts are checked before memory is taken for the masks, which is at
    most eight times the size of the file.

    Raises:
        UserError: the file is missing, damaged in any bit, of another format or version, or claims what it does not
            hold.
    """
    packed = load_packed(path)
    bits = {name: torch.from_numpy(array) for name, array in packed.bits.items()}
    return {name: tk.unpack_mask(bits[name], shape) for name, shape in packed.shapes.items()}, packed.info


def load_packed(path: Path) -> PackedMasks:
    """Read a mask file as `load_masks` does and raise what it raises, but leave our own format's bits packed."""
    if is_on_hub(path):
        path = download(path, MASK_FILE)
    if path.is_dir():
        path = path / MASK_FILE
    if not path.is_file():
        raise UserError(f"there is no mask file {path}; give the mask.safetensors of a run folder")
    check_pulled(path)
    if path.suffix in TORCH_SUFFIXES:
        return pack_masks(*_load_published(path))
    try:
        names = read_header(path)
        metadata = names.pop(METADATA)
        if metadata.get("format") != FORMAT and is_pruned(names):
            return pack_masks(*_load_published(path))
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is a safetensors file but no mask; give the mask.safetensors of a run folder")
        check_version(path, "mask", metadata, VERSION)
        if metadata.keys() - {"pattern", "structure"} != FIELDS:
            raise ValueError(f"its metadata are not {', '.join(sorted(FIELDS))}")
        info = MaskInfo(
            model=metadata["model"],
            method=metadata["method"],
            sparsity=float(metadata["sparsity"]),
            seed=int(metadata["seed"]),
            step=int(metadata["step"]),
            pattern=metadata.get("pattern"),
            structure=metadata.get("structure"),
        )
        shapes = {name: _shape(name, shape) for name, shape in unique_object(metadata["shapes"]).items()}
        bits = _bits(path, shapes)
        found = {name: int(np.bitwise_count(array).sum()) for name, array in bits.items()}
        if found != unique_object(metadata["kept"]):
            raise ValueError("the numbers of ones are not those in its metadata")
        packed = PackedMasks(bits, shapes, found, info)
        check_described(packed)
        if metadata["digest"] != _digest(metadata, bits):
            raise ValueError("its digest is wrong")
    except (SafetensorError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"the mask file {path} is damaged or no safetensors file ({' '.join(str(error).split())[:300]}); write it "
            "anew with tamt train"
        ) from error
    return packed


def check_described(packed: PackedMasks) -> None:
    """Check that masks have the pattern or the structure that their info names. Raises ValueError if not."""
    if packed.info.pattern is not None:
        _check_pattern(packed.info.pattern, packed.shapes, packed.bits)
    if packed.info.structure is not None:
        _check_structure(packed.info.structure, packed.shapes, packed.kept)


def _check_pattern(text: str, shapes: Mapping[str, tuple[int, ...]], bits: Mapping[str, NDArray[np.uint8]]) -> None:
    """Check that a pattern is one and that masks have it. Raises ValueError if not."""
    try:
        kept, group = parse_pattern(text)
    except UserError as error:
        raise ValueError(f"its pattern is {text[:20]!r}") from error
    for name, shape in shapes.items():
        entries = np.unpackbits(bits[name], count=math.prod(shape), bitorder="little")
        if shape[-1] % group or (entries.reshape(-1, group).sum(axis=1) != kept).any():
            raise ValueError(f"{name} does not keep {text}")


def _check_structure(text: str, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, int]) -> None:
    """Check that a structure is one and that masks keep as many groups as it says. Raises ValueError if not."""
    try:
        structure = Structure.parse(text)
    except UserError as error:
        raise ValueError(f"its structure is {text[:20]!r}") from error
    for name, shape in shapes.items():
        if len(shape) != 1 or found[name] != keep_of(shape[0], structure.share(name)):
            raise ValueError(f"{name} does not keep {structure}")
    if str(structure) != text or {*structure.kinds} != {*map(kind_of, shapes)}:
        raise ValueError(f"its masks are not those of {structure}")


def _due(info: MaskInfo) -> str:
    """What a mask must have, in words."""
    if info.pattern or info.structure:
        return f"the pattern {info.pattern}" if info.pattern else f"the structure {info.structure}"
    return f"a sparsity of {info.sparsity:g}"


def _keep_of(name: str, entries: int, info: MaskInfo) -> int:
    pruned = info.pruned
    if isinstance(pruned, tk.Pattern):
        return entries // pruned.m * pruned.n
    return keep_of(entries, share_of(name, pruned))


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not shape or not all(type(extent) is int and extent > 0 for extent in shape):
        raise ValueError(f"{name} has no shape")
    if math.prod(shape) > MAX_ENTRIES:
        raise ValueError(f"{name} claims {math.prod(shape)} entries")
    return tuple(shape)


def _bits(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.uint8]]:
    """The bits of each matrix, once all have been found to be there. Raises ValueError if they are not."""
    with safe_open(path, framework="np") as file:  # which checks that the file has the bytes that its header claims
        if set(file.keys()) != shapes.keys():
            raise ValueError("its matrices are not those in its metadata")
        for name, shape in shapes.items():
            stored = file.get_slice(name)
            size = -(-math.prod(shape) // 8)
            if stored.get_dtype() != "U8" or stored.get_shape() != [size]:
                raise ValueError(f"{name} is not held by {size} bytes")
        bits = {name: file.get_tensor(name) for name in shapes}
    for name, shape in shapes.items():
        rest = math.prod(shape) % 8
        if rest and bits[name][-1] >> rest:
            raise ValueError(f"{name} has ones after its last entry")
    return bits


def _digest(metadata: Mapping[str, str], bits: Mapping[str, NDArray[np.uint8]]) -> str:
    """The SHA-256 of metadata, but for a digest in them, and of bits, in hexadecimal digits."""
    told = {key: value for key, value in metadata.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(bits):
        digest.update(bits[name].tobytes())
    return digest.hexdigest()


def _load_published(path: Path) -> tuple[Masks, MaskInfo]:
    content = read_state(path, f"the mask file {path}")
    prefix = _prefix(content)
    if is_pruned(content):
        content = {f"{name}{MASK}": content[f"{name}{MASK}"] for name in pruned_names(content, f"the mask file {path}")}
    masks: Masks = {}
    for number, (name, mask) in enumerate(content.items()):
        if not name.endswith((".weight", ".weight_mask")):
            raise UserError(
                f"the mask file {path} holds {name[:100]!r}, which is not named ….weight or ….weight_mask; remove it "
                "or give another file"
            )
        plain = _plain_name(name.removeprefix(prefix))
        masks[plain] = mask
        # A stride of 0, a storage that is shared or a device without memory makes masks of any size out of one byte.
        entries = sum(mask.numel() for mask in masks.values())
        held = mask.layout == torch.strided and mask.device.type == "cpu" and 0 < mask.numel() <= MAX_ENTRIES
        if not held or entries > path.stat().st_size or len(masks) <= number:
            raise UserError(
                f"the mask file {path} does not hold each entry of {name[:100]!r} once; save the masks as plain tensors"
            )
        masks[plain] = as_mask(mask, name, f"the mask file {path}")
    return masks, MaskInfo(model="unknown", method=PUBLISHED, sparsity=round(sparsity_of(masks), 6), seed=0, step=0)


def _prefix(names: Iterable[str]) -> str:
    """What comes before an encoder's own names in those of a model with a head: all before its embeddings."""
    found = (EMBEDDINGS.match(name) for name in names)
    return next((match[1] for match in found if match), "")


def _plain_name(name: str) -> str:
    name = name.removesuffix(MASK)
    for prefix in PUBLISHED_PREFIXES:
        name = name.removeprefix(prefix)
    return name
