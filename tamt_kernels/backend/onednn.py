"""float32 matrix products on a CPU by oneDNN, which torch ships and uses for other types.

torch computes float32 products by MKL or another BLAS. On CPUs that MKL is not tuned for, oneDNN can be several times
faster. torch has no public function for a float32 product by oneDNN. So the operator of torch's compiler is used, after
a check.
"""

import functools

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5
"""Largest allowed error of the checked product, relative to its largest entry; float32 rounding gives 3e-7."""
CHECKED = (37, 130, 65)
"""Rows, inputs and outputs of the checked product: not multiples of a vector's width, to check remainders too."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` of float32 tensors on a CPU, with any strides; without a gradient."""
    if bias is not None:
        bias = bias.expand(weight.shape[0]).contiguous()  # oneDNN reads the bias without its strides
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class PackedLinear(nn.Module):
    """``nn.Linear`` by oneDNN, with a weight in oneDNN's own layout for this number of tokens; without a gradient."""

    def __init__(self, layer: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), tokens)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def pack_linears(model: nn.Module, tokens: int) -> None:
    """Replace each ``nn.Linear`` inside a model by a ``PackedLinear``, in place."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                setattr(parent, name, PackedLinear(module, tokens))


@functools.cache
def problem() -> str | None:
    """Why oneDNN cannot be used, or None. The first call computes a product of each layout and checks it."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return "this torch is built without oneDNN"
    rows, width, out = CHECKED
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, width), (out, width), (out,)))
        cases = [(x, weight, bias), (x, weight.t().contiguous().t(), None)]
        cases += [(x.t().contiguous().t(), weight.t().contiguous().t(), None)]
        for left, right, offset in cases:
            expected = left.double() @ right.double().t() + (0 if offset is None else offset.double())
            try:
                product = linear(left, right, offset)
            except Exception as error:  # another torch may have changed its private operator
                return f"torch's operator for it fails ({type(error).__name__})"
            if product.shape != expected.shape or product.dtype != torch.float32:
                return "torch's operator for it gives another shape or type"
            if not (product.double() - expected).abs().max() <= TOLERANCE * expected.abs().max():
                return "its products are wrong here"
    return None
