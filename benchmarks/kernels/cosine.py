"""The cosine of knowledge distillation, of hidden states as a step has them, against torch's."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import tamt_kernels as tk
from benchmarks.kernels import eager
from benchmarks.kernels.layers import Layer, directions
from benchmarks.kernels.setting import COMPILED, COPY, EAGER, OURS, Setting
from benchmarks.measure import Comparison

SIMILARITY = "F.cosine_similarity"
TOKENS = {"cpu": 512, "cuda": 8192}  # of 4 x 128, of 16 x 512


def comparisons(setting: Setting) -> Iterator[Comparison]:
    """A layer's hidden states: the student's are float32 even under autocast, as layer norms leave them."""
    tokens, width = 8 if setting.quick else TOKENS[setting.device.type], setting.up_projection[1]
    constant = torch.randn(tokens, width, device=setting.device).to(setting.dtype)
    trained = torch.randn(tokens, width, device=setting.device, requires_grad=True)
    layers = {
        OURS: Layer(lambda: tk.cosine(constant, trained), [trained]),
        EAGER: Layer(lambda: eager.cosine(constant, trained), [trained]),
        SIMILARITY: Layer(lambda: _similarity(constant, trained), [trained]),
    }
    if compiled := setting.compiled(_similarity):
        layers[COMPILED] = Layer(lambda: compiled(constant, trained), [trained])
    read = constant.nbytes + trained.nbytes
    moved = read + 4 * tokens, read + trained.nbytes
    case = f"{tokens} tokens"
    yield from directions("cosine", case, layers, {COPY: setting.copy(moved[0])}, moved)


def _similarity(constant: Tensor, trained: Tensor) -> Tensor:
    return F.cosine_similarity(constant.float(), trained.float(), dim=-1)
