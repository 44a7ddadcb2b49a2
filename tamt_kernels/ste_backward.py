"""The straight-through gradient of a score."""

import torch
from torch import Tensor

from tamt_kernels import checks, reference
from tamt_kernels.library import define, differentiate, refuse_double_backward


def _fake(grad_masked_weight: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or torch.promote_types(grad_masked_weight.dtype, weight.dtype)
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


operator = define(
    "ste_backward(Tensor grad_masked_weight, Tensor weight, ScalarType? dtype=None) -> Tensor",
    eager=reference.ste_backward,
    fake=_fake,
)
differentiate("ste_backward", refuse_double_backward)


def ste_backward(grad_masked_weight: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """dS = d(W ⊙ m) ⊙ W: the gradient of the score, the binarization passed straight through (eq. 4).

    As W is frozen, the gradients of several backward passes may be summed first and multiplied by W once.

    Args:
        grad_masked_weight: the gradient of the masked weight; float32, float16 or bfloat16.
        weight: W, of the same shape and on the same device; float32, float16 or bfloat16.
        dtype: of the result; by default the type to which torch promotes the two.

    Returns:
        The product, contiguous, taken in float32 and rounded once to ``dtype``. It cannot be differentiated
        again.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.matrix("ste_backward", "grad_masked_weight", grad_masked_weight)
    checks.matrix("ste_backward", "weight", weight)
    checks.shape("ste_backward", "grad_masked_weight", grad_masked_weight, tuple(weight.shape), "the shape of weight")
    checks.device("ste_backward", "grad_masked_weight", grad_masked_weight, weight.device, "weight")
    checks.result_dtype("ste_backward", dtype)
    grad_score: Tensor = operator(grad_masked_weight, weight, dtype)
    return grad_score
