"""Models that do not run in half precision: found by a forward pass, and run in fp32 where "auto" chose otherwise."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from tamt.options.evaluate import EvaluateOptions
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute
from tamt.training.run_folder import AUTO

AnyOptions = TypeVar("AnyOptions", TrainOptions, FinetuneOptions, EvaluateOptions)


class HalfPrecisionError(UserError):
    """A model runs in fp32 but not in half precision. `why` is the message without the remedy."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; give --precision fp32")
        self.why = why


def or_in_fp32(run: Callable[[AnyOptions], dict], options: AnyOptions) -> dict:
    """The result of `run(options)`; where "auto" chose a precision that the model does not run in, that of fp32.

    Raises:
        HalfPrecisionError: the model does not run in the half precision that was asked for by name.
    """
    try:
        return run(options)
    except HalfPrecisionError as error:
        if options.precision != AUTO:
            raise
        say(f"precision fp32, as {error.why} (updates are always float32)")
    return run(replace(options, precision="fp32"))


@torch.no_grad()
def check_runs(model: nn.Module, name: str, compute: Compute, forward: Callable[[], object]) -> None:
    """Check by a forward pass with dropout off that a model takes its input in the precision of the run.

    Args:
        model: set to eval mode.
        name: what a message calls the model.
        compute: gives the precision.
        forward: runs the model on some of the input.

    Raises:
        UserError: the model fails in fp32 too; the message quotes transformers or torch.
        HalfPrecisionError: the model runs in fp32 only.
    """
    model.eval()
    try:
        with compute.autocast():
            forward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any model's own code
        reason = " ".join(str(error).split())[:200].rstrip(".")
        try:
            forward()
        except Exception:
            raise UserError(
                f"{name} ({type(model).__name__}) cannot read this input ({type(error).__name__}: {reason}); choose "
                "another model, or a --max-length and tokenizer that it was made for"
            ) from error
        raise HalfPrecisionError(
            f"{name} ({type(model).__name__}) does not run in {compute.precision} ({reason})"
        ) from error
