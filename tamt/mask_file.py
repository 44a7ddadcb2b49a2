"""The mask file: one bit an entry in a safetensors container, and the metadata that says what it is."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

import tamt_kernels as tk
from tamt.errors import UserError
from tamt.files import write_atomically
from tamt.masking import Masks, sparsity_of

FORMAT = "tamt-mask"
VERSION = 1
PUBLISHED_PREFIXES = ("module.", "bert.", "roberta.", "distilbert.", "electra.")


@dataclass(frozen=True)
class MaskInfo:
    """Where a mask comes from: model (name or folder), method, sparsity asked for (0 to 1), seed, optimizer step."""

    model: str
    method: str
    sparsity: float
    seed: int
    step: int


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


def save_masks(path: Path, masks: Mapping[str, Tensor], info: MaskInfo) -> None:
    """Write masks to `path`, atomically: the file is there whole or not at all.

    Each mask is stored as ⌈n/8⌉ bytes, bit i % 8 of byte i // 8 the entry with flat index i; BERT-base's 73 matrices
    take 13.5 MB. The metadata holds the format, its version, `info`, and the shape of every matrix as JSON.
    """
    packed = pack_masks(masks, info)
    metadata = {key: str(value) for key, value in asdict(info).items()}
    metadata |= {
        "format": FORMAT,
        "format_version": str(VERSION),
        "shapes": json.dumps(packed.shapes),
        "kept": json.dumps(packed.kept),
    }
    write_atomically(path, save(packed.bits, metadata))


def load_masks(path: Path) -> tuple[Masks, MaskInfo]:
    """Read a mask file: ours (`.safetensors`) or the `mask.pt` of the paper's published code.

    A `.pt` file is a dict of bool tensors under names that end in `.weight` or `.weight_mask`; it is read with
    `weights_only=True`, so nothing in it is executed. Its origin is not recorded: method "published", seed and step 0.

    Raises:
        UserError: the file is missing, truncated, of another format or version, or holds a mask of the wrong size.
    """
    packed = load_packed(path)
    bits = {name: torch.from_numpy(array) for name, array in packed.bits.items()}
    return {name: tk.unpack_mask(bits[name], shape) for name, shape in packed.shapes.items()}, packed.info


def load_packed(path: Path) -> PackedMasks:
    """Read a mask file as `load_masks` does and raise what it raises, but leave our own format's bits packed."""
    if not path.is_file():
        raise UserError(f"there is no mask file {path}; give the mask.safetensors of a run folder")
    if path.suffix in {".pt", ".bin", ".pth"}:
        return pack_masks(*_load_published(path))
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the mask file {path} is damaged or no safetensors file ({error}); write it anew with tamt train"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is a safetensors file but no mask; give the mask.safetensors of a run folder")
    if metadata.get("format_version") != str(VERSION):
        raise UserError(
            f"the mask file {path} has format version {metadata.get('format_version')}, this tamt reads {VERSION}; "
            "install the tamt that wrote it or write it anew"
        )
    try:
        info = MaskInfo(
            model=metadata["model"],
            method=metadata["method"],
            sparsity=float(metadata["sparsity"]),
            seed=int(metadata["seed"]),
            step=int(metadata["step"]),
        )
        shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        kept: dict[str, int] = json.loads(metadata["kept"])
        found = {name: _count(bits[name], math.prod(shape)) for name, shape in shapes.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the mask file {path} is damaged: its metadata do not fit its contents ({error}); "
            "write it anew with tamt train"
        ) from error
    wrong = [name for name, count in found.items() if count != kept.get(name)]
    if wrong or bits.keys() != shapes.keys():
        name = wrong[0] if wrong else sorted(bits.keys() ^ shapes.keys())[0]
        raise UserError(
            f"the mask file {path} is damaged: {name} does not hold the number of entries its metadata names; "
            "write it anew with tamt train"
        )
    return PackedMasks(bits, shapes, kept, info)


def _count(bits: NDArray[np.uint8], entries: int) -> int:
    """How many of the bits are 1. Raises ValueError if they are not those of so many entries."""
    if bits.dtype != np.uint8 or bits.shape != (-(-entries // 8),):
        raise ValueError(f"{entries} entries are not held by {bits.dtype} {list(bits.shape)}")
    if entries % 8 and bits[-1] >> entries % 8:
        raise ValueError("there are ones after the last entry")
    return int(np.bitwise_count(bits).sum())


def _load_published(path: Path) -> tuple[Masks, MaskInfo]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise UserError(
            f"the mask file {path} cannot be read as a dict of tensors, and nothing in it is executed to find out more "
            f"({type(error).__name__}); give a mask.pt that holds only tensors"
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"the mask file {path} holds no dict of masks; give a mask.pt of bool tensors by name")
    masks: Masks = {}
    for name, mask in content.items():
        if (
            not isinstance(mask, Tensor)
            or mask.dtype != torch.bool
            or not str(name).endswith((".weight", ".weight_mask"))
        ):
            raise UserError(
                f"the mask file {path} holds {name!r}, which is no bool tensor named ….weight or ….weight_mask; "
                "remove it or give another file"
            )
        masks[_plain_name(str(name))] = mask
    return masks, MaskInfo(model="unknown", method="published", sparsity=round(sparsity_of(masks), 6), seed=0, step=0)


def _plain_name(name: str) -> str:
    name = name.removesuffix("_mask")
    for prefix in PUBLISHED_PREFIXES:
        name = name.removeprefix(prefix)
    return name
