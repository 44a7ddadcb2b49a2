"""The operator library ``torch.ops.tamt_kernels``.

Each operator is defined once, with its plain-torch definition as the kernel of every device. A faster kernel is
registered for its device and takes precedence there; callers and fake kernels stay the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

LIBRARY = torch.library.Library("tamt_kernels", "DEF")

# The same operators with only the extension's kernels, for operators that must first choose one of several kernels.
CPP = torch.library.Library("tamt_kernels_cpp", "DEF")


@dataclass(frozen=True)
class Operator:
    """What is known of an operator, beside what torch knows.

    Attributes:
        eager: the plain-torch definition.
        matrix: the position of the argument whose dtype and size decide which kernel is fastest: the weight, else the
            first argument.
        triton: the module of its Triton launcher, which has the operator's name; None if it has none.
        onednn: functions that compute a dense product by oneDNN on a CPU, by the name of the backend.
        composed_of: the operator that ``eager`` calls, and whose kernels therefore run; None if it calls none.
    """

    eager: Callable[..., Any]
    matrix: int
    triton: str | None
    onednn: Mapping[str, Callable[..., Any]]
    composed_of: str | None


OPERATORS: dict[str, Operator] = {}


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
    call: Callable[..., Any] = getattr(torch.ops.tamt_kernels, name).default
    arguments = call._schema.arguments  # type: ignore[attr-defined]
    OPERATORS[name] = Operator(
        eager=eager,
        matrix=next((i for i, argument in enumerate(arguments) if argument.name.startswith("weight")), 0),
        triton=f"tamt_kernels.triton_kernels.{triton}" if triton else None,
        onednn=onednn or {},
        composed_of=composed_of,
    )
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
