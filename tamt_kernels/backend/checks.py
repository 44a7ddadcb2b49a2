"""Checks of arguments, before any kernel starts.

A message names the operation, the argument, what it is and what it must be.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Ranking = Literal["signed", "abs"]

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
LONGEST_GROUP = 16  # of a pattern
MAX_ENTRIES = 2**31
"""Of one matrix: kernels use flat indices of 32 bits."""


def tensor(operation: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is a {type(value).__name__} but must be a Tensor")


def dtype(operation: str, name: str, value: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if value.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(
            f"{operation}: {name} has dtype {str(value.dtype).removeprefix('torch.')} but must have {names}"
        )


def shape(operation: str, name: str, value: Tensor, expected: tuple[int, ...], reason: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{operation}: {name} has shape {tuple(value.shape)} but must have {tuple(expected)}, {reason}"
        )


def dimensions(operation: str, name: str, value: Tensor, expected: int) -> None:
    if value.dim() != expected:
        raise ValueError(f"{operation}: {name} has shape {tuple(value.shape)} but must have {expected} dimensions")


def device(operation: str, name: str, value: Tensor, expected: torch.device, other: str) -> None:
    if value.device != expected:
        raise ValueError(f"{operation}: {name} is on {value.device} but must be on {expected}, as {other} is")


def matrix(operation: str, name: str, value: object) -> None:
    """Must be a floating-point tensor that is small enough for the kernels."""
    tensor(operation, name, value)
    assert isinstance(value, Tensor)
    dtype(operation, name, value, FLOAT_TYPES)
    size(operation, name, value)


def size(operation: str, name: str, value: Tensor) -> None:
    if value.numel() > MAX_ENTRIES:
        raise ValueError(
            f"{operation}: {name} has shape {tuple(value.shape)}, {value.numel()} entries, but must have at most 2**31"
        )


def packed(operation: str, name: str, value: object, shape_: tuple[int, ...]) -> None:
    """Must be what ``pack_mask`` returns for a mask of this shape."""
    tensor(operation, name, value)
    assert isinstance(value, Tensor)
    dtype(operation, name, value, (torch.uint8,))
    entries = math.prod(shape_)
    shape(operation, name, value, ((entries + 7) // 8,), f"one bit per entry of {shape_}")


def integers(operation: str, name: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
            raise TypeError(f"{operation}: {name} is a {type(value).__name__} but must be an int")


def keep(operation: str, name: str, count: int, score_name: str, score: Tensor) -> None:
    """Must be a number of entries of a score, or of another tensor that is ranked, such as a weight."""
    integers(operation, name, [count])
    if not 0 <= count <= score.numel():
        raise ValueError(
            f"{operation}: {name} is {count} but must be from 0 to {score.numel()}, the entries of {score_name} of "
            f"shape {tuple(score.shape)}"
        )


def pattern(operation: str, name: str, value: Tensor, pattern_: tuple[int, int]) -> None:
    """Must be a pattern whose groups divide the last dimension of a tensor, the score or the weight."""
    if not isinstance(pattern_, tuple) or len(pattern_) != 2:
        raise TypeError(f"{operation}: pattern is {pattern_!r:.60} but must be a Pattern, such as Pattern(2, 4)")
    integers(operation, "pattern", pattern_)
    n, m = pattern_
    if not 1 <= n < m <= LONGEST_GROUP:
        raise ValueError(
            f"{operation}: pattern is {n}:{m} but must be n:m with 1 <= n < m <= {LONGEST_GROUP}, such as 2:4"
        )
    if value.dim() == 0 or value.shape[-1] % m:
        raise ValueError(
            f"{operation}: {name} has shape {tuple(value.shape)} but its last dimension must be a multiple of {m}, as "
            f"pattern is {n}:{m}"
        )


def row(operation: str, name: str, index: int, shape_: tuple[int, ...]) -> None:
    """Must be the index of a row of a weight of this shape; negative indices count from the end."""
    integers(operation, name, [index])
    rows = shape_[0]
    if not -rows <= index < rows:
        raise ValueError(
            f"{operation}: {name} is {index} but must be from {-rows} to {rows - 1}, as weight has shape {shape_}"
        )


def thresholds(operation: str, name: str, pair: tuple[Tensor, ...], scores: list[Tensor], scores_name: str) -> None:
    """Must be the ``Thresholds`` of a list of matrices."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"{operation}: {name} is {pair!r:.60} but must be Thresholds, a pair of values and cuts")
    for part, numbers, kind in zip(("values", "cuts"), pair, (torch.float32, torch.int64), strict=True):
        tensor(operation, f"{name}.{part}", numbers)
        dtype(operation, f"{name}.{part}", numbers, (kind,))
        shape(operation, f"{name}.{part}", numbers, (len(scores),), f"an entry for each of {scores_name}")
        if scores:
            device(operation, f"{name}.{part}", numbers, scores[0].device, f"{scores_name}[0]")


def threshold(operation: str, value: Tensor, cut: Tensor, device_: torch.device) -> None:
    """Must be the ``value`` and ``cut`` of one matrix: ``thresholds.values[i]`` and ``thresholds.cuts[i]``."""
    for name, scalar, kind in (("value", value, torch.float32), ("cut", cut, torch.int64)):
        tensor(operation, name, scalar)
        dtype(operation, name, scalar, (kind,))
        shape(operation, name, scalar, (), "one number")
        device(operation, name, scalar, device_, "score")


def weight_and_score(operation: str, weight: Tensor, score: Tensor, index: str = "") -> None:
    """Must be W and S of one matrix; ``index``, such as "s[3]", follows their names if there are many."""
    matrix(operation, f"weight{index}", weight)
    matrix(operation, f"score{index}", score)
    shape(operation, f"score{index}", score, tuple(weight.shape), f"the shape of weight{index}")
    device(operation, f"score{index}", score, weight.device, f"weight{index}")


def absolute(operation: str, ranking: Ranking) -> bool:
    """Whether ``ranking``, which must be "signed" or "abs", is by absolute values."""
    if ranking not in ("signed", "abs"):
        raise ValueError(f"{operation}: ranking is {ranking!r} but must be 'signed' or 'abs'")
    return ranking == "abs"


def result_dtype(operation: str, value: torch.dtype | None) -> None:
    if value is not None and value not in FLOAT_TYPES:
        raise TypeError(f"{operation}: dtype is {value} but must be float32, float16 or bfloat16")
