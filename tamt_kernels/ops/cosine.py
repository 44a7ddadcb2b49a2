"""The cosine between a teacher's hidden states and a student's."""

from typing import Any

import torch
from torch import Tensor

from tamt_kernels import reference
from tamt_kernels.backend import checks
from tamt_kernels.backend.library import define, differentiate, refuse_double_backward


def _fake(constant: Tensor, trained: Tensor) -> Tensor:
    return torch.empty(trained.shape[:-1], dtype=torch.float32, device=trained.device)


def _fake_backward(grad_cosine: Tensor, constant: Tensor, trained: Tensor) -> Tensor:
    return torch.empty(trained.shape, dtype=trained.dtype, device=trained.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    constant, trained = inputs
    # What comes from inference mode cannot be saved, and has no version that would tell of a change.
    ctx.unsaved = [constant] if constant.is_inference() else []
    ctx.save_for_backward(trained, *([] if ctx.unsaved else [constant]))


def _backward(ctx: Any, grad_cosine: Tensor) -> tuple[None, Tensor]:
    trained, *saved = ctx.saved_tensors
    (constant,) = saved or ctx.unsaved
    return None, _backward_operator(grad_cosine, constant, trained)


_operator = define(
    "cosine(Tensor constant, Tensor trained) -> Tensor", eager=reference.cosine, fake=_fake, triton="cosine"
)
_backward_operator = define(
    "cosine_backward(Tensor grad_cosine, Tensor constant, Tensor trained) -> Tensor",
    eager=reference.cosine_backward,
    fake=_fake_backward,
    triton="cosine",
)
differentiate("cosine", _backward, _save)
differentiate("cosine_backward", refuse_double_backward)


def cosine(constant: Tensor, trained: Tensor) -> Tensor:
    """cos(constant, trained) over their last dimension: what knowledge distillation brings to 1 (eq. 6).

    Differentiable in ``trained`` alone. Each of forward and backward reads both tensors once, in their own types.

    Args:
        constant: [..., width]; float32, float16 or bfloat16. It may come from ``torch.inference_mode``, as a
            teacher's hidden states do; not under ``torch.compile``.
        trained: of that shape and on that device; float32, float16 or bfloat16.

    Returns:
        float32 [...]. Either norm is 1e-8 at least, as in ``torch.nn.functional.cosine_similarity``: the cosine with a
        row of zeros is 0.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.matrix("cosine", "constant", constant)
    checks.matrix("cosine", "trained", trained)
    if constant.dim() == 0:
        raise ValueError("cosine: constant has shape () but must have 1 dimension at least, the last one is reduced")
    checks.shape("cosine", "trained", trained, tuple(constant.shape), "the shape of constant")
    checks.device("cosine", "trained", trained, constant.device, "constant")
    found: Tensor = _operator(constant, trained)
    return found
