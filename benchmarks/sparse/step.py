"""A step of fine-tuning a BERT-base, 32 × 64 tokens: all weights dense, or the kept ones alone. Weights are random."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.sparse.products import HUGGING_FACE, OFF, SPARSE, Calls, Key, Times, dtypes, timed
from benchmarks.step.contenders import Setting, Step, fine_tuning, hugging_face_fine_tuning, in_bf16

BATCH, LENGTH = 32, 64


def measured(sparsities: tuple[float, ...], rounds: int, quick: bool) -> Times:
    """Milliseconds of a step, from the batch to the optimizer, taken by turns.

    Dense are the step of `tamt finetune` and that of transformers' model with torch's own AdamW. Where the CPU
    multiplies bfloat16, the dense step in it is there too, as what sparse training in float32 has to beat.
    """
    setting = Setting(torch.device("cpu"), "tiny" if quick else "bert-base", BATCH, 16 if quick else LENGTH)
    contenders: dict[Key, Calls] = {}

    def add(contender: str, sparsity: float | None, make: Callable[[Setting], Step], dtype: str = "float32") -> None:
        step = torch.enable_grad()(make(setting))
        contenders[Key(dtype, setting.tokens, sparsity, contender)] = [step]

    dense = partial(fine_tuning, sparsity=max(sparsities))
    add(HUGGING_FACE, None, hugging_face_fine_tuning)
    add(OFF, None, dense)
    if torch.bfloat16 in dtypes():
        add(OFF, None, in_bf16(dense), "bfloat16")
    for each in sparsities:
        add(SPARSE, each, partial(fine_tuning, sparsity=each, sparse=True))
    return timed(contenders, rounds)
