"""Which rows a training step takes: random, but of similar length, so that little is padding."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tamt.runtime import processes

WINDOW = 50
"""Batches within which rows are sorted by length: 5 % of SST-2's tokens are then padding, of shuffled rows 67 %."""
LENGTHS = 4
"""Number of padded lengths used with CUDA graphs; each length needs its own graph."""


def training_batches(lengths: np.ndarray, batch_size: int, seed: int, first: int) -> Iterator[list[int]]:
    """Yield the rows of each batch, endlessly, from step `first` (from 1) on; a batch depends on its step and the seed.

    Args:
        lengths: tokens of each row, [rows].
        batch_size: rows per batch; the last batch of an epoch may be smaller.
        seed: of the order.
        first: the first step.
    """
    epoch, start = divmod(first - 1, steps_per_epoch(len(lengths), batch_size))
    while True:
        yield from bucketed(lengths, batch_size, np.random.default_rng((seed, epoch)))[start:]
        epoch, start = epoch + 1, 0


def shared_batches(
    lengths: np.ndarray, step_rows: int, parts: int, seed: int, first: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield this process's batches, `parts` for each step, with their share in the rows of the step, 0-dim.

    A batch without rows, at the end of an epoch, holds the first row of the step with a share of 0, so that it has a
    gradient, which is 0.
    """
    for rows in training_batches(lengths, step_rows, seed, first):
        for part in processes.share(len(rows), parts):
            own = [rows[i] for i in part]
            yield own or rows[:1], torch.tensor(len(own) / len(rows))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches per epoch, including a smaller last one."""
    return -(-rows // batch_size)


def bucketed(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[list[int]]:
    """All rows once, in random batches of rows of similar length.

    Rows are shuffled, sorted by length within windows of 50 batches (a quarter of the epoch if it is short, so that
    batches differ between epochs), cut into batches, and the batches shuffled.

    Args:
        lengths: tokens of each row, [rows].
        batch_size: rows per batch.
        generator: decides the order.
    """
    order = generator.permutation(len(lengths))
    batches = -(-len(lengths) // batch_size)
    window = batch_size * min(WINDOW, max(1, batches // 4))
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    cut = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    return [cut[i] for i in generator.permutation(len(cut))]


def pad(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Sequence[int]]], few_lengths: bool
) -> dict[str, Tensor]:
    """Rows as a batch on the CPU, each feature int64 [rows, length], padded to the longest row.

    Args:
        tokenizer: pads the rows; no row is longer than its `model_max_length`.
        rows: the features of each, `input_ids` among them.
        few_lengths: pad further, to the next of four lengths, a multiple of 8 tokens apart: 32 for GLUE.
    """
    length = max(len(row["input_ids"]) for row in rows)
    if few_lengths:
        longest = tokenizer.model_max_length
        step = 8 * math.ceil(longest / (8 * LENGTHS))
        length = min(step * math.ceil(length / step), longest)
    return dict(tokenizer.pad(rows, padding="max_length", max_length=length, return_tensors="pt"))
