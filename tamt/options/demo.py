"""The options of `tamt demo`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.options.base import Options


@dataclass(frozen=True)
class DemoOptions(Options):
    """Find and fine-tune winning tickets of MiniLM at 70 % sparsity: OMP, random and TAMT-KD beside the full model.

    What is finished in the output folder is not done again, so the demo can be interrupted.

    Args:
        output: folder of the runs, of results.json and of report.png.
        steps: optimizer steps of the mask training.
        batch_size: blocks of 128 tokens per step.
        train_samples: TREC questions to fine-tune on.
        seeds: fine-tunings of each subnetwork.
    """

    output: Path = Path("demo")
    steps: int = 60
    batch_size: int = 8
    train_samples: int = 800
    seeds: int = 3
