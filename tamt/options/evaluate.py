"""The options of `tamt evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.choices import Precision
from tamt.options.base import Options


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Measure the MLM and KD loss of a subnetwork on dev text.

    The masking of the tokens depends on the seed alone, so two masks are compared on the same tokens.

    Args:
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
        corpus: wikitext-103 (its validation split), demo, or text files, one paragraph per line.
        mask: mask file of the subnetwork; without one the full model is measured.
        head: head.safetensors of a run, for a checkpoint without an MLM head or to measure with the trained one.
        max_length: tokens per block; 512, or what the model or its tokenizer takes at most if that is less.
        batch_size: blocks per batch.
        blocks: measure only the first so many blocks of the text.
        precision: arithmetic of the model; auto is bf16 where the device has instructions for it, else fp16 on
            a GPU and fp32 on a CPU.
        seed: of the masked positions.
    """

    model: str
    corpus: list[str]
    mask: Path | None = None
    head: Path | None = None
    max_length: int | None = None
    batch_size: int = 16
    blocks: int | None = None
    precision: Precision = "auto"
    seed: int = 0
