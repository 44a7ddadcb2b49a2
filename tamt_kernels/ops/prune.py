"""Zero the pruned entries of many tensors in place."""

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import increment_version

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define


def _fake(tensors: list[Tensor], packed: list[Tensor]) -> None:
    return None


_prune = define(
    "prune_(Tensor(a!)[] tensors, Tensor[] packed) -> ()", eager=reference.prune_, fake=_fake, triton="prune"
)


def prune_(tensors: Sequence[Tensor], packed: Sequence[Tensor]) -> None:
    """Set the pruned entries of tensors to exactly zero in place, even if they are NaN or infinite.

    Fine-tuning does so with gradients, so that pruned weights stay zero, and IMP with weights. It takes one pass over
    the tensors, and reads one bit per entry of the masks. On a GPU it takes one launch per dtype and one for addresses.

    Args:
        tensors: float32, float16 or bfloat16, of any shape, on one device; no gradient is tracked.
        packed: uint8, for each tensor a mask of its shape, packed by ``pack_mask``.

    Raises:
        TypeError: a tensor has another dtype, or a mask is not uint8.
        ValueError: ``packed`` and ``tensors`` differ in length; a mask does not have the length of a packed mask of its
            tensor's shape; a tensor or a mask is on another device than the first tensor or has more than 2**31
            entries.
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
        for tensor in tensors:
            increment_version(tensor)
