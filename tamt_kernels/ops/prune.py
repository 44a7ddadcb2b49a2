"""Zeros where masks prune, in place, of many tensors at once."""

from collections.abc import Sequence

from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define


def _fake(tensors: list[Tensor], packed: list[Tensor]) -> None:
    return None


_prune = define(
    "prune_(Tensor(a!)[] tensors, Tensor[] packed) -> ()", eager=reference.prune_, fake=_fake, triton="prune"
)


def prune_(tensors: Sequence[Tensor], packed: Sequence[Tensor]) -> None:
    """Set the pruned entries of tensors to exactly zero, in place, whatever they were: NaN and infinities too.

    What a fine-tuning needs of its gradients, so that pruned weights stay zero, and IMP of its weights: one pass over
    the tensors, on a GPU in one launch for each dtype and one for their addresses, and a bit an entry of the masks.

    Args:
        tensors: float32, float16 or bfloat16, of any shape, on one device; no gradient is tracked.
        packed: uint8, for each tensor the mask of its shape as ``pack_mask`` packs it.

    Raises:
        TypeError: a tensor has another dtype, or a mask is not uint8.
        ValueError: ``packed`` has not a mask for each tensor, or one is not of the length of a mask of its tensor's
            shape; a tensor or a mask is on another device than the first tensor, or has more than 2**31 entries.
    """
    tensors, packed = list(tensors), list(packed)
    if len(packed) != len(tensors):
        raise ValueError(f"prune_: packed has length {len(packed)} but must have {len(tensors)}, as tensors has")
    for i, (tensor, bits) in enumerate(zip(tensors, packed, strict=True)):
        checks.matrix("prune_", f"tensors[{i}]", tensor)
        checks.device("prune_", f"tensors[{i}]", tensor, tensors[0].device, "tensors[0]")
        checks.packed("prune_", f"packed[{i}]", bits, tuple(tensor.shape))
        checks.device("prune_", f"packed[{i}]", bits, tensor.device, f"tensors[{i}]")
    if tensors:
        _prune([tensor.detach() for tensor in tensors], packed)
