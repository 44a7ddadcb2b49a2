"""The options of `tamt bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tamt.options.base import Options
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class BenchOptions(Options):
    """Measure what a model with zeros gains on this CPU when it runs sparse: time, file and memory.

    Args:
        model: a hub name, a folder, the run folder of tamt finetune, or "demo" or "demo-base".
        mask: the ticket: a mask file, a run folder of tamt train, or hub:USER/REPO; by default the zeros are the
            model's own.
        sparsity: prune this share of each matrix by magnitude instead, between 0 and 1: what any mask of this sparsity
            would gain.
        tokens: the tokens per row; by default 1,8,32,128,512, as far as the model reads them.
        batch_size: the rows per batch.
        threads: the numbers of threads; by default 1 and all cores.
        precision: the type of the weights and the arithmetic.
        rounds: the measured forward passes, of which the median counts.
    """

    POSITIONAL: ClassVar[bool] = True

    model: str
    mask: Path | None = None
    sparsity: float | None = None
    tokens: list[int] | None = None
    batch_size: int = 1
    threads: list[int] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    rounds: int = 7

    def check(self) -> None:
        """Check the options together. Raises UserError if they cannot work."""
        if self.mask is not None and self.sparsity is not None:
            raise UserError("--mask and --sparsity exclude each other; leave one out")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise UserError(f"--sparsity {self.sparsity:g} must be between 0 and 1, such as 0.8; correct it")
        for flag, numbers in {"tokens": self.tokens, "threads": self.threads}.items():
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise UserError(f"--{flag} must be whole numbers from 1 on, such as 1,8; correct it or leave it out")
