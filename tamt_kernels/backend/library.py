"""The operator library ``torch.ops.tamt_kernels``.

Each operator is defined once, with its plain-torch definition as the kernel of every device. A faster kernel
registers itself for its device and takes precedence there; callers and fakes stay the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch

LIBRARY = torch.library.Library("tamt_kernels", "DEF")
OPERATORS: list[str] = []

# The same operators with the extension's kernels alone, for operators that have to choose one of several first.
CPP = torch.library.Library("tamt_kernels_cpp", "DEF")

# The position of the argument whose type and size decide which kernel is the fastest: W's, else the first.
MATRIX: dict[str, int] = {}


class TritonKernel(NamedTuple):
    """Where an operator's Triton launcher is."""

    module: str
    launcher: str


TRITON: dict[str, TritonKernel] = {}

EAGER: dict[str, Callable[..., Any]] = {}  # each operator's plain-torch definition

# The dense products of a linear layer, which another library than torch's BLAS can compute on a CPU: its functions.
ONEDNN: dict[str, dict[str, Callable[..., Any]]] = {}

# What runs an operator whose definition calls another, where it has no kernel of its own: that one's.
COMPOSED: dict[str, str] = {}


def define(
    schema: str,
    *,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    triton: str | None = None,
    composed_of: str | None = None,
    onednn: dict[str, Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """Define an operator by its schema, its plain-torch definition and the shape of its result; return it.

    ``triton`` names the file of ``tamt_kernels.triton_kernels`` that holds its launcher, of the operator's
    name, where there is one; ``composed_of`` the operator that ``eager`` calls, if it does; ``onednn`` what computes a
    dense product by oneDNN, by the name of the backend.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    CPP.define(schema)
    torch.library.register_fake(f"tamt_kernels::{name}", fake, lib=LIBRARY)
    OPERATORS.append(name)
    EAGER[name] = eager
    if triton:
        TRITON[name] = TritonKernel(f"tamt_kernels.triton_kernels.{triton}", name)
    if composed_of:
        COMPOSED[name] = composed_of
    if onednn:
        ONEDNN[name] = onednn
    operator = getattr(torch.ops.tamt_kernels, name).default
    weights = (i for i, each in enumerate(operator._schema.arguments) if each.name.startswith("weight"))
    MATRIX[name] = next(weights, 0)
    found: Callable[..., Any] = operator
    return found


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None] | None = None) -> None:
    """Register an operator's gradient: ``save(ctx, inputs, output)`` runs in the forward, then ``backward``.

    Of ``mask_weight`` and ``masked_embedding`` the extension has its own, which goes before it (csrc/autograd.cpp).
    """
    torch.library.register_autograd(f"tamt_kernels::{name}", backward, setup_context=save, lib=LIBRARY)


def refuse_double_backward(ctx: object, *grads: torch.Tensor) -> NoReturn:
    """The gradient of a gradient operator, as the straight-through estimate is no function's derivative."""
    raise RuntimeError(
        "tamt_kernels: double backward is not supported, because a straight-through gradient has no derivative"
    )
