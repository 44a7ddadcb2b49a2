"""topk_threshold over all matrices of the model, against the ways to look a threshold up."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

import tamt_kernels as tk
from benchmarks import scores
from benchmarks.kernels.setting import COMPILED, EAGER, OURS, READ, Setting
from benchmarks.measure import Comparison, Contenders
from tamt_kernels import reference

KTHVALUE, TOPK, SORT, PARTITION = LOOK_UPS = "kthvalue loop", "topk loop", "sort loop", "np.partition loop"
WARM, COLD = f"{scores.USUAL}, warm", "cold"


def by_kthvalue(score: Tensor, keep: int) -> Tensor:
    return score.kthvalue(score.numel() - keep + 1).values


def by_topk(score: Tensor, keep: int) -> Tensor:
    return score.topk(keep, sorted=False).values.min()


def by_sort(score: Tensor, keep: int) -> Tensor:
    return score.sort(descending=True).values[keep - 1]


def by_partition(score: Tensor, keep: int) -> float:
    place = score.numel() - keep
    return float(np.partition(score.numpy(), place)[place])


def by_definition(score: Tensor, keep: int) -> reference.Thresholds:
    return reference.topk_threshold([score], [keep])


def loop(look_up: Callable[..., object], matrices: list[Tensor], keep: list[int]) -> Callable[[], object]:
    flat = [matrix.reshape(-1) for matrix in matrices]
    return lambda: [look_up(score, count) for score, count in zip(flat, keep, strict=True)]


def comparisons(setting: Setting) -> Iterator[Comparison]:
    keep = [scores.keep(shape) for shape in setting.shapes]
    for distribution in scores.DISTRIBUTIONS:
        matrices = scores.scores(distribution, setting.shapes, setting.device)
        moved = 4 * sum(matrix.numel() for matrix in matrices)
        contenders = fast(setting, matrices, keep)
        if distribution == scores.USUAL:  # the others take seconds, whatever the distribution
            contenders |= slow(setting, matrices, keep)
        yield Comparison("topk_threshold", "forward", distribution, contenders, moved)
        if distribution == scores.USUAL:
            yield Comparison("topk_threshold", "forward", WARM, warm(matrices, keep), moved)


def fast(setting: Setting, matrices: list[Tensor], keep: list[int]) -> Contenders:
    contenders: Contenders = {OURS: lambda: tk.topk_threshold(matrices, keep, check_nan=False), READ: read(matrices)}
    if setting.device.type == "cpu":
        contenders[PARTITION] = loop(by_partition, matrices, keep)
    return contenders


def warm(matrices: list[Tensor], keep: list[int]) -> Contenders:
    """With the thresholds of one optimizer step before."""
    last = tk.topk_threshold(matrices, keep)
    matrices = scores.next_step(matrices)
    return {
        OURS: lambda: tk.topk_threshold(matrices, keep, last=last, check_nan=False),
        COLD: lambda: tk.topk_threshold(matrices, keep, check_nan=False),
        READ: read(matrices),
    }


def read(matrices: list[Tensor]) -> Callable[[], Tensor]:
    return torch.cat([matrix.reshape(-1) for matrix in matrices]).sum


def slow(setting: Setting, matrices: list[Tensor], keep: list[int]) -> Contenders:
    contenders: Contenders = {EAGER: lambda: reference.topk_threshold(matrices, keep)}
    for name, look_up in ((KTHVALUE, by_kthvalue), (TOPK, by_topk), (SORT, by_sort)):
        contenders[name] = loop(look_up, matrices, keep)
    if compiled := setting.compiled(by_definition):
        contenders[COMPILED] = loop(compiled, matrices, keep)
    return contenders
