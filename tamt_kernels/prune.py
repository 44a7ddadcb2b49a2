"""Zeros where a mask prunes, in place."""

from torch import Tensor

from tamt_kernels import checks, reference
from tamt_kernels.library import define


def _fake(tensor: Tensor, packed: Tensor) -> None:
    return None


_prune = define(
    "prune_(Tensor(a!) tensor, Tensor packed) -> ()", eager=reference.prune_, fake=_fake, triton="mask_weights"
)


def prune_(tensor: Tensor, packed: Tensor) -> Tensor:
    """Set the pruned entries of a tensor to exactly zero, in place, whatever they were: NaN and infinities too.

    What a fine-tuning needs of its gradients, so that pruned weights stay zero: one pass over the tensor, and a bit an
    entry of the mask.

    Args:
        tensor: float32, float16 or bfloat16, any shape; no gradient is tracked.
        packed: uint8, the mask of that shape as ``pack_mask`` packs it.

    Returns:
        ``tensor``.

    Raises:
        TypeError: ``tensor`` has another dtype, or ``packed`` is not uint8.
        ValueError: ``packed`` is not of the length of a mask of ``tensor``'s shape or is on another device, or
            ``tensor`` has more than 2**31 entries.
    """
    checks.matrix("prune_", "tensor", tensor)
    checks.packed("prune_", packed, tuple(tensor.shape))
    checks.device("prune_", "packed", packed, tensor.device, "tensor")
    _prune(tensor.detach(), packed)
    return tensor
