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
    # autograd cannot save tensors from inference mode, as they have no version by which it could detect a change.
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
    """cos(constant, trained) over the last dimension, which knowledge distillation drives to 1 (eq. 6).

    Differentiable in ``trained`` only. The forward and the backward each read both tensors once, in their own dtypes.

    Args:
        constant: [..., width]; float32, float16 or bfloat16. It may come from ``torch.inference_mode``, as a
            teacher's hidden states do, but not under ``torch.compile``.
        trained: of the same shape and on the same device; float32, float16 or bfloat16.

    Returns:
        float32 [...]. Norms are at least 1e-8, as in ``torch.nn.functional.cosine_similarity``, so the cosine with a
        row of zeros is 0.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.matrix("cosine", "constant", constant)
    checks.matrix("cosine", "trained", trained)
    if constant.dim() == 0:
        raise ValueError(
            "cosine: constant has shape () but must have at least 1 dimension, the last of which is reduced"
        )
    checks.shape("cosine", "trained", trained, tuple(constant.shape), "the shape of constant")
    checks.device("cosine", "trained", trained, constant.device, "constant")
    cosines: Tensor = _operator(constant, trained)
    return cosines
