"""A linear layer over a masked weight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tamt_kernels import checks
from tamt_kernels.mask_weight import mask_weight


def masked_linear(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None = None,
    *,
    ranking: checks.Ranking = "signed",
) -> Tensor:
    """Y = X (W ⊙ m)ᵀ + b (section 3.4.1).

    The gradients are dX = dY (W ⊙ m) and, straight through, dS = (dYᵀ X) ⊙ W (eq. 4).

    ``mask_weight`` and torch's matrix product: at 1-4 thousand tokens or more, a product that masks W as it
    goes is slower than one over a W ⊙ m written once. Under autocast W ⊙ m is written in autocast's type,
    without a second pass.

    Args:
        x: [..., in]; of the weight's dtype unless autocast is on.
        weight: W [out, in], frozen.
        score: S [out, in].
        value, cut: the threshold, as in ``mask_weight``.
        bias: [out] or None.
        ranking: that of ``topk_threshold``.

    Returns:
        [..., out].

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device, or more than 2**31 entries.
    """
    checks.matrix("masked_linear", "x", x)
    checks.weight_and_score("masked_linear", weight, score)
    checks.dimensions("masked_linear", "weight", weight, 2)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"masked_linear: x has shape {tuple(x.shape)} but must have (..., {weight.shape[1]}), "
            f"as weight has shape {tuple(weight.shape)}"
        )
    checks.device("masked_linear", "x", x, weight.device, "weight")
    if bias is not None:
        checks.matrix("masked_linear", "bias", bias)
        checks.shape("masked_linear", "bias", bias, (weight.shape[0],), "an entry for each row of weight")
        checks.device("masked_linear", "bias", bias, weight.device, "weight")
    dtype = weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    elif x.dtype != dtype:
        raise TypeError(f"masked_linear: x has dtype {x.dtype} but must have {dtype}, that of weight")
    return F.linear(x, mask_weight(weight, score, value, cut, dtype, ranking=ranking), bias)
