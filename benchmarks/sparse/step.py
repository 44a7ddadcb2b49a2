"""A step of fine-tuning a BERT-base, 32 × 64 tokens: all weights dense, or the kept ones alone. Weights are random."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.sparse.products import HUGGING_FACE, OFF, SPARSE, Calls, Key, Times, timed
from benchmarks.step.contenders import Setting, fine_tuning, hugging_face_fine_tuning

BATCH, LENGTH = 32, 64


def measured(sparsities: tuple[float, ...], rounds: int, quick: bool) -> Times:
    """Milliseconds of a step, from the batch to the optimizer, taken by turns.

    Dense are the step of `tamt finetune` and that of transformers' model with torch's own AdamW.
    """
    setting = Setting(torch.device("cpu"), "tiny" if quick else "bert-base", BATCH, 16 if quick else LENGTH)
    contenders: dict[Key, Calls] = {}

    def add(contender: str, sparsity: float | None, make: Callable[[Setting], Callable[[], object]]) -> None:
        step = torch.enable_grad()(make(setting))
        contenders[Key("float32", setting.tokens, sparsity, contender)] = [step]

    add(HUGGING_FACE, None, hugging_face_fine_tuning)
    add(OFF, None, partial(fine_tuning, sparsity=max(sparsities)))
    for each in sparsities:
        add(SPARSE, each, partial(fine_tuning, sparsity=each, sparse=True))
    return timed(contenders, rounds)
