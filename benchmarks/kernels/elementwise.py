"""The operations that one pass over the bytes can do, on one matrix and on all of the model's, against a copy."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

import tamt_kernels as tk
from benchmarks import scores
from benchmarks.kernels import eager
from benchmarks.kernels.setting import COMPILED, COPY, DENSE, EAGER, FLOAT_MASK, NEW_COPY, OURS, Setting
from benchmarks.measure import Comparison, Contenders
from tamt_kernels import reference

PACKBITS, UNPACKBITS, LOOP, STE_LOOP = "np.packbits", "np.unpackbits", "mask_weight loop", "ste_backward loop"

Arguments = list[tuple[Any, ...]]


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
    return found | {COPY: setting.copy(moved), NEW_COPY: setting.new_copy(moved)}


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
        NEW_COPY: setting.new_copy(moved),
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


def unpack(setting: Setting) -> Iterator[Comparison]:
    for case, shapes in cases(setting):
        masks = [tk.binarize(*each[1:]) for each in masked(setting, shapes)]
        packed: Arguments = [(tk.pack_mask(mask), list(mask.shape)) for mask in masks]
        moved = entries(shapes) * 9 // 8
        found = contenders(setting, packed, moved, tk.unpack_mask, reference.unpack_mask)
        if setting.device.type == "cpu":
            found[UNPACKBITS] = over(lambda bits, _: np.unpackbits(bits.numpy(), bitorder="little"), packed)
        yield Comparison("unpack_mask", "forward", case, found, moved)


def prune(setting: Setting) -> Iterator[Comparison]:
    """Of gradients in a fine-tuning."""
    for case, shapes in cases(setting):
        masks = [tk.binarize(*each[1:]) for each in masked(setting, shapes)]
        grads, packed = [torch.randn(mask.shape, device=mask.device) for mask in masks], [*map(tk.pack_mask, masks)]
        moved = entries(shapes) * 65 // 8
        arguments: Arguments = [([grad], [bits]) for grad, bits in zip(grads, packed, strict=True)]
        found = contenders(setting, arguments, moved, tk.prune_, reference.prune_)
        found[OURS] = partial(tk.prune_, grads, packed)
        floats: Arguments = [(grad, mask.float()) for grad, mask in zip(grads, masks, strict=True)]
        found[FLOAT_MASK] = over(lambda grad, mask: grad.mul_(mask), floats)
        yield Comparison("prune_", "backward", case, found, moved)


def ste_backward(setting: Setting) -> Iterator[Comparison]:
    dtype = setting.dtype
    for case, shapes in cases(setting):
        weights = [scores.weight(shape, setting.device, number) for number, shape in enumerate(shapes)]
        arguments: Arguments = [(torch.randn_like(each).to(dtype), each) for each in weights]
        moved = entries(shapes) * (dtype.itemsize + 4 + 4)
        found = contenders(setting, arguments, moved, tk.ste_backward, reference.ste_backward)
        if len(shapes) > 1:
            grads = [grad for grad, _ in arguments]
            found |= {OURS: partial(tk.ste_backward_all, grads, weights), STE_LOOP: found[OURS]}
        yield Comparison("ste_backward", "backward", case, found, moved)


def ste_backward_into(setting: Setting) -> Iterator[Comparison]:
    """Added to a gradient, and with the norm in the same pass."""
    for case, shapes in cases(setting):
        weights = [scores.weight(shape, setting.device, number) for number, shape in enumerate(shapes)]
        arguments: Arguments = [(torch.randn_like(each), each, torch.zeros_like(each)) for each in weights]
        moved = entries(shapes) * 4 * 4
        added: Contenders = {
            OURS: over(lambda grad, weight, total: tk.ste_backward(grad, weight, add_to=total), arguments),
            "addcmul_": over(lambda grad, weight, total: total.addcmul_(grad, weight), arguments),
            COPY: setting.copy(moved),
        }
        yield Comparison("ste_backward", "backward", f"{case}, added", added, moved)
        moved = entries(shapes) * 3 * 4
        with_norm: Contenders = {
            OURS: over(lambda grad, weight, _: tk.ste_backward(grad, weight, squared_norm=True), arguments),
            "product, then its norm": over(lambda grad, weight, _: torch.linalg.vector_norm(grad * weight), arguments),
            COPY: setting.copy(moved),
        }
        yield Comparison("ste_backward", "backward", f"{case}, with its norm", with_norm, moved)
