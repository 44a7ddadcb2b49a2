"""AdamW for a part of a score matrix, shared by the steps that differ in how they mask."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# A kernel's arguments have types of Triton's own language, which annotations cannot express.

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamt_kernels.triton_kernels.common import read, write

# Entries that a warp handles at once: four per thread of each of five tensors take 64 registers, so that a processor of
# an H100 runs 32 warps. With eight it would run 16.
PART = 128


@triton.jit
def update(
    grad, weight, score, mean, square, inside, factor, step_size, root, decay, new_mean, old_square, new_square, eps,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """AdamW in the order, and with the roundings, of the definition. Returns the weight and the new score.

    The square root is correctly rounded; MKL's, which torch uses on a CPU, is wrong for seven entries in a thousand.
    """
    # Everything is read before anything is written, because the compiler does not know that the tensors do not overlap.
    g, w, s = read(grad, inside, WHOLE), read(weight, inside, WHOLE), read(score, inside, WHOLE)
    m, v = read(mean, inside, WHOLE), read(square, inside, WHOLE)
    gradient = g * w * factor
    # torch interpolates from the nearer end.
    near = new_mean < 0.5
    m = tl.fma(tl.where(near, new_mean, new_mean - 1.0), gradient - m, tl.where(near, m, gradient))
    v = tl.fma(new_square * gradient, gradient, old_square * v)
    write(mean, m, inside, WHOLE)
    write(square, v, inside, WHOLE)
    s = s * decay + tl.div_rn(-step_size * m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    write(score, s, inside, WHOLE)
    return w, s


def check_contiguous(operation: str, **lists: Sequence[Tensor]) -> None:
    """Check what is written in place. Raises ValueError, which names the first tensor that is not contiguous."""
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            if not tensor.is_contiguous():
                raise ValueError(f"{operation}: {name}[{i}] has strides {tensor.stride()} but must be contiguous")


def written_type(operation: str, masked: Sequence[Tensor]) -> torch.dtype:
    """The dtype of all masked weights that are written. Raises ValueError if they differ, as one kernel writes all."""
    written = [target for target in masked if target.numel()] or list(masked)
    if differing := [target.dtype for target in written if target.dtype != written[0].dtype]:
        raise ValueError(f"{operation}: masked has {written[0].dtype} and {differing[0]} but must have one dtype")
    return written[0].dtype
