"""What options may be where no registry says it, and what those left open become.

Nothing here imports torch, so that the command line answers at once.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast, get_args

from tamt.runtime.errors import UserError, check_choice, did_you_mean


@dataclass(frozen=True, eq=False)
class Names:
    """The names in a registry, read when they are asked for; can stand in `Annotated[str, Names(REGISTRY)] | None`."""

    registry: Mapping[str, object]

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)


Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal["auto", "none", "tensorboard", "wandb", "mlflow", "trackio"]
"""Where metrics go beside `metrics.jsonl`; the names are those of accelerate's `log_with`, and of the packages."""
Sparse = Literal["auto", "on", "off"]
"""Whether a fine-tuning stores and multiplies kept weights only."""
RegressionStart = Literal["auto", "mean", "zero"]
"""What a model for a regression gives before it is trained: the mean of the train labels, or about 0."""
Values = Literal["float32", "float16", "bfloat16"]
"""The types of numbers in a sparse file, by torch's names."""
Ranking = Literal["signed", "abs"]
Scope = Literal["matrix", "row"]
"""Which weights are ranked together: those of a whole matrix, or those of each output row, as Wanda's authors do."""
Drop = Literal["first", "last", "alternate"]
"""The layers that are dropped by their place."""
Scores = Literal["magnitude", "activation", "two-valued"]
"""The scores at the start: proportional to |W|, to |W| · ‖x‖, or 0.02 and 0 (paper eq. 5)."""
DEFAULT_SCORES: Scores = "activation"
Dropout = Literal["none", "model"]
"""The dropout of the student in mask training: none, or that of the model's configuration (the paper's)."""
MASKS_BY_NAME = ("omp", "random")
"""Masks to start from that are not read from a file."""
HUB = "hub:"
"""Begins the name of a mask that is on the Hugging Face Hub: `hub:USER/REPO`, or `hub:USER/REPO@REVISION`."""
LONGEST_GROUP = 16
"""Of a pattern, as far as the kernels go."""
KEEP = 2
"""Checkpoints that are kept: the newest, and one to fall back on."""
CHECK_EVERY = 100
"""Steps between two checks that several processes hold the same; each reads all that trains once."""


def scores_of_start(scores: str | None, initial: str | None) -> Scores:
    """The kind of scores: the one asked for, else `DEFAULT_SCORES`.

    A mask that is asked for by itself starts from two values, because a criterion that disagrees with it would undo it
    within a few steps.

    Raises:
        UserError: there is no such kind.
    """
    if scores is None:
        return DEFAULT_SCORES if initial is None else "two-valued"
    check_choice("scores", scores, get_args(Scores))
    return cast("Scores", scores)


def check_initial(initial: str | None) -> None:
    """Check that `initial` is omp, random, a mask on the hub, or a mask file or run folder that is there.

    Raises UserError if not.
    """
    if initial is None or initial in MASKS_BY_NAME or initial.startswith(HUB):
        return
    if not Path(initial).exists():
        hint = did_you_mean(initial, MASKS_BY_NAME, "correct it")
        known = ", ".join(MASKS_BY_NAME)
        raise UserError(f"--initial {initial} is not {known}, a mask file or a run folder; {hint}")


def parse_pattern(text: str) -> tuple[int, int]:
    """The two numbers of a pattern such as "2:4": how many of how many neighbours are kept.

    Raises:
        UserError: it is not n:m with 1 ≤ n < m ≤ 16.
    """
    found = re.fullmatch(r"([0-9]{1,2}):([0-9]{1,2})", text)
    if not found or not 1 <= int(found[1]) < int(found[2]) <= LONGEST_GROUP:
        raise UserError(
            f"the pattern {text} is not N:M with 1 <= N < M <= {LONGEST_GROUP}; give 2:4 to keep 2 of each 4 neighbours"
        )
    return int(found[1]), int(found[2])


def share_pruned(pattern: str) -> float:
    """The share of zeros that a pattern leaves, 0.5 for "2:4". Raises UserError, see `parse_pattern`."""
    kept, group = parse_pattern(pattern)
    return (group - kept) / group


def resolve_tracker(track: Tracker) -> str:
    """The tracker to use: "auto" is TensorBoard if it is installed, else "none".

    Raises:
        UserError: the tracker is not installed.
    """
    if track == "auto":
        return "tensorboard" if find_spec("tensorboard") else "none"
    if track != "none" and not find_spec(track):
        package = "'tamt[tensorboard]'" if track == "tensorboard" else track
        raise UserError(f"--track {track} needs {track}, which is not installed; pip install {package} or leave it out")
    return track
