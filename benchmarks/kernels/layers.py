"""masked_linear and masked_embedding, forward, backward and both, against the layers that they replace."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tamt_kernels as tk
from benchmarks import scores
from benchmarks.kernels import eager
from benchmarks.kernels.setting import COMPILED, COPY, DENSE, EAGER, FLOAT_MASK, OURS, Setting
from benchmarks.measure import Comparison, Contenders

TOKENS = (1, 16, 64, 256, 2048)
MORE_TOKENS = (*TOKENS, 8192)  # where there is a GPU
IDS = 2048
WHOLE_MATRIX = "mask_weight, then dense"
SAME_GRADIENTS, TOLERANCE = {OURS, COMPILED, FLOAT_MASK}, 2e-2  # of bfloat16's products, and of ties all kept
IN_TRAINING = "MaskedLinear under MaskAdamW"  # which has masked the weight in its step

Mask = tuple[Tensor, Tensor, Tensor]  # S, φ and the cut


class Layer(NamedTuple):
    """A forward pass, and the tensors that get a gradient in its backward pass."""

    forward: Callable[[], Tensor]
    inputs: list[Tensor]

    def backward(self, grad: Tensor) -> Callable[[], object]:
        output = cache(self.forward)
        return lambda: torch.autograd.grad(output(), self.inputs, grad, retain_graph=True)

    def both(self, grad: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(self.forward(), self.inputs, grad)


def agree(layer: Layer, other: Layer, grad: Tensor) -> bool:
    """Whether all gradients are the same but for rounding, or the layer fails, which is told where it is measured."""
    try:
        found = layer.both(grad)()
    except Exception:
        return True
    pairs = zip(cast("tuple[Tensor, ...]", found), cast("tuple[Tensor, ...]", other.both(grad)()), strict=True)
    return all((mine.float() - theirs.float()).norm() <= TOLERANCE * theirs.float().norm() for mine, theirs in pairs)


def directions(
    operation: str, case: str, layers: dict[str, Layer], forward_only: Contenders, moved: tuple[int, int]
) -> Iterator[Comparison]:
    """The comparisons of layers with one output shape; ``moved`` counts the bytes of forward and backward."""
    grad = torch.randn_like(next(iter(layers.values())).forward())
    forward = {name: layer.forward for name, layer in layers.items()}
    yield Comparison(operation, "forward", case, {**forward, **forward_only}, moved[0])
    if wrong := [name for name in layers if name in SAME_GRADIENTS and not agree(layers[name], layers[EAGER], grad)]:
        print(f"{operation}, {case}: left out, as its gradients are not those of the definition: {', '.join(wrong)}")
        layers = {name: layer for name, layer in layers.items() if name not in wrong}
    backward = {name: layer.backward(grad) for name, layer in layers.items()}
    yield Comparison(operation, "backward", case, backward, moved[1])
    both = {name: layer.both(grad) for name, layer in layers.items()}
    yield Comparison(operation, "both", case, both, sum(moved))


def masked(setting: Setting, shape: scores.Shape) -> tuple[Tensor, Mask]:
    """A frozen W in the compute type, and a mask that trains."""
    (score,) = scores.scores(scores.USUAL, [shape], setting.device)
    thresholds = tk.topk_threshold([score], [scores.keep(shape)])
    weight = scores.weight(shape, setting.device).to(setting.dtype)
    return weight, (score.requires_grad_(), thresholds.values[0], thresholds.cuts[0])


def linear(setting: Setting) -> Iterator[Comparison]:
    """From the hidden size to the FFN's, 768 → 3072."""
    weight, mask = masked(setting, setting.up_projection)
    trained = weight.clone().requires_grad_()
    bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=setting.device)
    compiled = setting.compiled(eager.masked_linear)
    for tokens in token_counts(setting):
        x = torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=setting.device, requires_grad=True)
        yield from _linear(setting, x, weight, mask, bias, trained, compiled)


def token_counts(setting: Setting) -> tuple[int, ...]:
    if setting.quick:
        return TOKENS[:2]
    return MORE_TOKENS if setting.device.type == "cuda" else TOKENS


def _linear(
    setting: Setting,
    x: Tensor,
    weight: Tensor,
    mask: Mask,
    bias: Tensor,
    trained: Tensor,
    compiled: Callable[..., Tensor] | None,
) -> Iterator[Comparison]:
    score, value, _cut = mask
    layers = {
        OURS: Layer(lambda: tk.masked_linear(x, weight, *mask, bias), [x, score]),
        EAGER: Layer(lambda: eager.masked_linear(x, weight, *mask, bias), [x, score]),
        FLOAT_MASK: Layer(
            lambda: F.linear(x, eager.float_mask_weight(weight, score, value, weight.dtype), bias), [x, score]
        ),
        DENSE: Layer(lambda: F.linear(x, trained, bias), [x, trained]),
    }
    module = tk.MaskedLinear(nn.Parameter(weight), nn.Parameter(bias), scores.keep(setting.up_projection))
    tk.MaskAdamW([module])
    assert module.masked is not None
    layers[IN_TRAINING] = Layer(lambda: module(x), [x, module.masked.tensor])
    if compiled:
        layers[COMPILED] = Layer(lambda: compiled(x, weight, *mask, bias), [x, score])
    rows = x.element_size() * x.shape[0]
    outputs, inputs = rows * weight.shape[0], rows * weight.shape[1]
    matrix = weight.numel() * weight.element_size()
    moved = outputs + inputs + matrix + 4 * score.numel(), outputs + 2 * inputs + 2 * matrix + 4 * score.numel()
    forward_only: Contenders = {
        WHOLE_MATRIX: lambda: F.linear(x, tk.mask_weight(weight, *mask), bias),
        COPY: setting.copy(moved[0]),
    }
    yield from directions("masked_linear", f"{x.shape[0]} tokens", layers, forward_only, moved)


def embedding(setting: Setting) -> Iterator[Comparison]:
    """The word embedding, of which a batch looks up a small part."""
    rows, _columns = setting.shapes[0]
    weight, mask = masked(setting, setting.shapes[0])
    trained = weight.clone().requires_grad_()
    count = rows // 15 if setting.quick else IDS
    compiled = setting.compiled(eager.masked_embedding)
    ids = torch.randint(rows, (count,), device=setting.device, generator=scores.generator(setting.device))
    yield from _embedding(setting, f"{count} ids of {rows}", ids, weight, mask, trained, compiled)
    text = scores.tokens(count, rows, setting.device)
    yield from _embedding(setting, f"{count} tokens of text", text, weight, mask, trained, compiled)


def _embedding(
    setting: Setting,
    case: str,
    ids: Tensor,
    weight: Tensor,
    mask: Mask,
    trained: Tensor,
    compiled: Callable[..., Tensor] | None,
) -> Iterator[Comparison]:
    score, value, _cut = mask
    layers = {
        OURS: Layer(lambda: tk.masked_embedding(ids, weight, *mask), [score]),
        EAGER: Layer(lambda: eager.masked_embedding(ids, weight, *mask), [score]),
        FLOAT_MASK: Layer(
            lambda: F.embedding(ids, eager.float_mask_weight(weight, score, value, weight.dtype)), [score]
        ),
        WHOLE_MATRIX: Layer(lambda: F.embedding(ids, tk.mask_weight(weight, *mask)), [score]),
        DENSE: Layer(lambda: F.embedding(ids, trained), [trained]),
    }
    if compiled:
        layers[COMPILED] = Layer(lambda: compiled(ids, weight, *mask), [score])
    looked_up = ids.numel() * weight.shape[1]
    forward = looked_up * (4 + 2 * weight.element_size())
    backward = looked_up * 2 * weight.element_size() + 4 * score.numel()
    yield from directions("masked_embedding", case, layers, {COPY: setting.copy(forward)}, (forward, backward))
