"""The mask file: one bit an entry in a safetensors container, and the metadata that says what it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
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


def save_masks(path: Path, masks: Mapping[str, Tensor], info: MaskInfo) -> None:
    """Write masks to `path`, atomically: the file is there whole or not at all.

    Each mask is stored as ⌈n/8⌉ bytes, bit i % 8 of byte i // 8 the entry with flat index i; BERT-base's 73 matrices
    take 13.5 MB. The metadata holds the format, its version, `info`, and the shape of every matrix as JSON.
    """
    metadata = {key: str(value) for key, value in asdict(info).items()}
    metadata |= {
        "format": FORMAT,
        "format_version": str(VERSION),
        "shapes": json.dumps({name: list(mask.shape) for name, mask in masks.items()}),
        "kept": json.dumps({name: int(mask.sum()) for name, mask in masks.items()}),
    }
    packed = {name: tk.pack_mask(mask).cpu() for name, mask in masks.items()}
    write_atomically(path, save(packed, metadata))


def load_masks(path: Path) -> tuple[Masks, MaskInfo]:
    """Read a mask file: ours (`.safetensors`) or the `mask.pt` of the paper's published code.

    A `.pt` file is a dict of bool tensors under names that end in `.weight` or `.weight_mask`; it is read with
    `weights_only=True`, so nothing in it is executed. Its origin is not recorded: method "published", seed and step 0.

    Raises:
        UserError: the file is missing, truncated, of another format or version, or holds a mask of the wrong size.
    """
    if not path.is_file():
        raise UserError(f"there is no mask file {path}; give the mask.safetensors of a run folder")
    return _load_published(path) if path.suffix in {".pt", ".bin", ".pth"} else _load_packed(path)


def _load_packed(path: Path) -> tuple[Masks, MaskInfo]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
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
        shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
        kept: dict[str, int] = json.loads(metadata["kept"])
        masks = {name: tk.unpack_mask(packed[name], shape) for name, shape in shapes.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the mask file {path} is damaged: its metadata do not fit its contents ({error}); "
            "write it anew with tamt train"
        ) from error
    wrong = [name for name, mask in masks.items() if int(mask.sum()) != kept.get(name)]
    if wrong or packed.keys() != masks.keys():
        name = wrong[0] if wrong else sorted(packed.keys() ^ masks.keys())[0]
        raise UserError(
            f"the mask file {path} is damaged: {name} does not hold the number of entries its metadata names; "
            "write it anew with tamt train"
        )
    return masks, info


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
