"""Masks at one bit per entry, as they are stored."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define


def _fake_pack(mask: Tensor) -> Tensor:
    return torch.empty((mask.numel() + 7) // 8, dtype=torch.uint8, device=mask.device)


def _fake_unpack(packed: Tensor, shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.bool, device=packed.device)


operator = define("pack_mask(Tensor mask) -> Tensor", eager=reference.pack_mask, fake=_fake_pack, triton="pack")
_unpack = define(
    "unpack_mask(Tensor packed, SymInt[] shape) -> Tensor",
    eager=reference.unpack_mask,
    fake=_fake_unpack,
    triton="pack",
)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask of n entries into ⌈n / 8⌉ bytes.

    Entry i of the flattened mask is bit i % 8 of byte i // 8, counted from the least significant bit. Padding bits are
    0.

    Args:
        mask: bool, any shape.

    Returns:
        uint8 [⌈n / 8⌉], on the mask's device.

    Raises:
        TypeError: the mask is not a bool tensor.
        ValueError: it has more than 2**31 entries.
    """
    checks.tensor("pack_mask", "mask", mask)
    checks.dtype("pack_mask", "mask", mask, (torch.bool,))
    checks.size("pack_mask", "mask", mask)
    packed: Tensor = operator(mask)
    return packed


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack a mask that ``pack_mask`` packed.

    Args:
        packed: uint8 [⌈n / 8⌉], where n is the product of ``shape``.
        shape: the mask's shape.

    Returns:
        A bool tensor of that shape, on the packed tensor's device.

    Raises:
        TypeError: ``packed`` is not a uint8 tensor, or ``shape`` is not a sequence of ints.
        ValueError: ``packed`` does not have the length of a packed mask of this shape, or the shape has more than 2**31
            entries.
    """
    if not isinstance(shape, Sequence):
        raise TypeError(f"unpack_mask: shape is a {type(shape).__name__} but must be a sequence of ints")
    shape = list(shape)
    checks.integers("unpack_mask", "an extent of shape", shape)
    if any(extent < 0 for extent in shape):
        raise ValueError(f"unpack_mask: shape is {tuple(shape)} but must have no negative extent")
    if (entries := math.prod(shape)) > checks.MAX_ENTRIES:
        raise ValueError(f"unpack_mask: shape is {tuple(shape)}, {entries} entries, but must have at most 2**31")
    checks.packed("unpack_mask", "packed", packed, tuple(shape))
    mask: Tensor = _unpack(packed, shape)
    return mask
