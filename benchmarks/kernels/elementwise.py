"""The operations that one pass over the bytes can do, on one matrix and on all of the model's, against a copy."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

import tamt_kernels as tk
from benchmarks import scores
from benchmarks.kernels import eager
from benchmarks.kernels.setting import COMPILED, COPY, DENSE, EAGER, FLOAT_MASK, OURS, Setting
from benchmarks.measure import Comparison, Contenders
from tamt_kernels import reference

PACKBITS, LOOP = "np.packbits", "mask_weight loop"

Arguments = list[tuple[Tensor, ...]]


def over(function: Callable[..., object], arguments: Arguments) -> Callable[[], object]:
    """Call a function on each matrix's arguments."""
    return lambda: [function(*each) for each in arguments]


def contenders(
    setting: Setting,
    arguments: Arguments,
    moved: int,
    ours: Callable[..., object],
    definition: Callable[..., object],
) -> Contenders:
    """An operation, its definition, that compiled, and the copy."""
    found: Contenders = {OURS: over(ours, arguments), EAGER: over(definition, arguments)}
    if compiled := setting.compiled(definition):
        found[COMPILED] = over(compiled, arguments)
    return found | {COPY: setting.copy(moved)}


def cases(setting: Setting) -> Iterator[tuple[str, list[scores.Shape]]]:
    rows, columns = setting.up_projection
    yield f"{rows} × {columns}", [setting.up_projection]
    yield f"{len(setting.shapes)} matrices", setting.shapes


def masked(setting: Setting, shapes: list[scores.Shape]) -> Arguments:
    """W, S, φ and the cut of each matrix."""
    matrices = scores.scores(scores.USUAL, shapes, setting.device)
    thresholds = tk.topk_threshold(matrices, [scores.keep(shape) for shape in shapes])
    weights = [scores.weight(shape, setting.device, number) for number, shape in enumerate(shapes)]
    return list(zip(weights, matrices, thresholds.values, thresholds.cuts, strict=True))


def entries(shapes: list[scores.Shape]) -> int:
    return sum(rows * columns for rows, columns in shapes)


def mask_weight(setting: Setting) -> Iterator[Comparison]:
    dtype = setting.dtype
    for case, shapes in cases(setting):
        arguments = masked(setting, shapes)
        moved = entries(shapes) * (4 + 4 + dtype.itemsize)
        found = contenders(
            setting,
            arguments,
            moved,
            lambda weight, score, value, cut: tk.mask_weight(weight, score, value, cut, dtype),
            lambda weight, score, value, cut: reference.mask_weight(weight, score, value, cut, dtype),
        )
        found[FLOAT_MASK] = over(
            lambda weight, score, value, _: eager.float_mask_weight(weight, score, value, dtype), arguments
        )
        found[DENSE] = over(lambda weight, *_: weight.to(dtype, copy=True), arguments)
        yield Comparison("mask_weight", "forward", case, found, moved)


def mask_weights(setting: Setting) -> Iterator[Comparison]:
    """All matrices in one call."""
    dtype = setting.dtype
    arguments = masked(setting, setting.shapes)
    weights, matrices, values, cuts = (list(column) for column in zip(*arguments, strict=True))
    thresholds = tk.Thresholds(torch.stack(values), torch.stack(cuts))
    moved = entries(setting.shapes) * (4 + 4 + dtype.itemsize)
    found: Contenders = {
        OURS: lambda: tk.mask_weights(weights, matrices, thresholds, dtype),
        EAGER: lambda: reference.mask_weights(weights, matrices, *thresholds, dtype),
        LOOP: over(lambda weight, score, value, cut: tk.mask_weight(weight, score, value, cut, dtype), arguments),
        DENSE: over(lambda weight, *_: weight.to(dtype, copy=True), arguments),
        COPY: setting.copy(moved),
    }
    yield Comparison("mask_weights", "forward", f"{len(setting.shapes)} matrices", found, moved)


def binarize(setting: Setting) -> Iterator[Comparison]:
    for case, shapes in cases(setting):
        arguments: Arguments = [each[1:] for each in masked(setting, shapes)]
        moved = entries(shapes) * (4 + 1)
        found = contenders(setting, arguments, moved, tk.binarize, reference.binarize)
        yield Comparison("binarize", "forward", case, found, moved)


def pack(setting: Setting) -> Iterator[Comparison]:
    for case, shapes in cases(setting):
        masks: Arguments = [(tk.binarize(*each[1:]),) for each in masked(setting, shapes)]
        moved = entries(shapes) * 9 // 8
        found = contenders(setting, masks, moved, tk.pack_mask, reference.pack_mask)
        if setting.device.type == "cpu":
            found[PACKBITS] = over(lambda mask: np.packbits(mask.numpy(), bitorder="little"), masks)
        yield Comparison("pack_mask", "forward", case, found, moved)


def ste_backward(setting: Setting) -> Iterator[Comparison]:
    dtype = setting.dtype
    for case, shapes in cases(setting):
        weights = [scores.weight(shape, setting.device, number) for number, shape in enumerate(shapes)]
        arguments: Arguments = [(torch.randn_like(each).to(dtype), each) for each in weights]
        moved = entries(shapes) * (dtype.itemsize + 4 + 4)
        found = contenders(setting, arguments, moved, tk.ste_backward, reference.ste_backward)
        yield Comparison("ste_backward", "backward", case, found, moved)
