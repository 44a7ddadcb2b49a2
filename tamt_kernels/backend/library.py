"""The operator library ``torch.ops.tamt_kernels``.

Each operator is defined once, with its plain-torch definition as the kernel of every device. A faster kernel is
registered for its device and takes precedence there; callers and fake kernels stay the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch

LIBRARY = torch.library.Library("tamt_kernels", "DEF")
OPERATORS: list[str] = []

# The same operators with only the extension's kernels, for operators that must first choose one of several kernels.
CPP = torch.library.Library("tamt_kernels_cpp", "DEF")

# The position of the argument whose dtype and size decide which kernel is fastest: the weight, else the first argument.
MATRIX: dict[str, int] = {}


class TritonKernel(NamedTuple):
    """The module and the function of an operator's Triton launcher."""

    module: str
    launcher: str


TRITON: dict[str, TritonKernel] = {}

EAGER: dict[str, Callable[..., Any]] = {}  # each operator's plain-torch definition

# The functions by which oneDNN computes the dense products of a linear layer on a CPU: {operator: {backend: function}}.
ONEDNN: dict[str, dict[str, Callable[..., Any]]] = {}

# {operator: the operator that its definition calls, and whose kernels therefore run}.
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
    """Define an operator and return it.

    Args:
        schema: the operator's name, arguments and results, in torch's language.
        eager: the plain-torch definition.
        fake: returns empty tensors of the shape and dtype of the results.
        triton: the file of ``tamt_kernels.triton_kernels`` with a launcher of the operator's name, if there is one.
        composed_of: the operator that ``eager`` calls, if it calls one.
        onednn: functions that compute a dense product by oneDNN, by the name of the backend.
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
    arguments = operator._schema.arguments
    MATRIX[name] = next((i for i, argument in enumerate(arguments) if argument.name.startswith("weight")), 0)
    call: Callable[..., Any] = operator
    return call


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None] | None = None) -> None:
    """Register an operator's gradient: ``save(ctx, inputs, output)`` runs in the forward, then ``backward``.

    For ``mask_weight`` and ``masked_embedding`` the extension's gradient takes precedence (csrc/autograd.cpp).
    """
    torch.library.register_autograd(f"tamt_kernels::{name}", backward, setup_context=save, lib=LIBRARY)


def refuse_double_backward(ctx: object, *grads: torch.Tensor) -> NoReturn:
    """Refuse to differentiate a gradient: the straight-through estimate is not the derivative of a function."""
    raise RuntimeError(
        "tamt_kernels: double backward is not supported, because a straight-through gradient has no derivative"
    )
