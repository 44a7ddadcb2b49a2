"""The options of `tamt demo`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.options.base import Options
from tamt.options.values import check_seeds


@dataclass(frozen=True)
class DemoOptions(Options):
    """Find and fine-tune winning tickets of MiniLM at 70 % sparsity: OMP, random and TAMT-KD, beside the full model.

    Repeat the command to continue an interrupted demo: finished runs in the output folder are kept.

    Args:
        output: the folder for the runs, results.json and report.png.
        steps: the optimizer steps of mask training.
        batch_size: the blocks of 128 tokens per step.
        train_samples: the number of TREC questions to fine-tune on.
        seeds: the seeds of the fine-tunings; by default 0,1,2.
    """

    output: Path = Path("demo")
    steps: int = 60
    batch_size: int = 8
    train_samples: int = 800
    seeds: list[int] | None = None

    def check(self) -> None:
        """Check the options together. Raises UserError if they cannot work."""
        check_seeds(self.seeds)
