"""Calibration: the size of each matrix's inputs, measured on some text with the dense model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tamt.data.corpora import Blocks, train_batches
from tamt.masks.masking import prunable_modules
from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.search.search import Search

CALIBRATION_BLOCKS = 64
"""Blocks of text for the calibration: 8 batches of 8."""


def activation_importance(search: Search) -> dict[str, Tensor]:
    """Wanda's criterion |W_ij| · ‖x_j‖ for each prunable matrix (Sun et al., 2023).

    It is |W| for the word embedding and for matrices that read no input. The model must still be dense. The first of
    several processes measures, so that all have the same numbers.

    Returns:
        float32 tensors with the shapes of the matrices, by the names that masks use.

    Raises:
        UserError: see `input_norms`.
    """
    text, encoder, device = search.text, search.student.encoder, search.compute.device
    assert text.train is not None
    norms = processes.by_first(partial(input_norms, encoder, text.train, text.batch_size, text.seed, device))
    importance = {}
    for name, weight in search.weights().items():
        norm = norms.get(name.removesuffix(".weight"))
        importance[name] = weight.detach().abs() if norm is None else weight.detach().abs() * norm.to(device)
    return importance


@torch.no_grad()
def input_norms(
    encoder: PreTrainedModel, blocks: Blocks, batch_size: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """The norm ‖x_j‖ of each input feature of each prunable linear layer, over the tokens of some text.

    The text is the first 64 blocks in the order of the training with `seed`; padding is left out. The model computes
    in fp32 with dropout off.

    Args:
        encoder: the dense model.
        blocks: the training text.
        batch_size: blocks that go through the model at once; it changes the result only by rounding.
        seed: of the order of the text.
        device: where the model is.

    Returns:
        float32 [in_features] on the CPU, by the names of the modules. Modules that read no input, such as Longformer's
        for global attention, are left out and reported.

    Raises:
        UserError: a layer reads an input that is not finite.
    """
    encoder.eval()
    squares: dict[str, Tensor] = {}
    with _watched(encoder, partial(_add_squares, squares)):
        for rows in _texts(blocks, batch_size, seed):
            encoder(input_ids=rows.to(device), return_dict=True)
    linear = [name for name, module in prunable_modules(encoder).items() if isinstance(module, nn.Linear)]
    if unread := [name for name in linear if name not in squares]:
        say(f"{len(unread)} matrices read no input of the model, {unread[0]} the first: they rank by magnitude alone")
    for name in squares:
        if not squares[name].isfinite().all():
            raise UserError(f"the inputs of {name} are not finite on the calibration text; check the checkpoint")
    return {name: square.sqrt().float().cpu() for name, square in squares.items()}


def _texts(blocks: Blocks, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Token ids [rows, length] without padding, in batches."""
    count = min(CALIBRATION_BLOCKS, len(blocks))
    chosen = next(train_batches(blocks, count, seed, 0))
    for ids, real in zip(
        chosen["input_ids"].split(batch_size), chosen["attention_mask"].split(batch_size), strict=True
    ):
        lengths = real.sum(1)
        for length in lengths.unique().tolist():
            yield ids[lengths == length, :length]


def _add_squares(squares: dict[str, Tensor], name: str, x: Tensor) -> None:
    added = x.detach().flatten(0, -2).float().square().sum(0, dtype=torch.float64)
    squares[name] = squares[name] + added if name in squares else added


@contextmanager
def _watched(encoder: PreTrainedModel, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see` with the name and the input of each prunable linear layer in every forward pass."""

    def hook(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        see(name, inputs[0])

    handles = [
        module.register_forward_pre_hook(partial(hook, name))
        for name, module in prunable_modules(encoder).items()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
