"""What the kernels are held to: at most so many times what another contender takes in the same run."""

from typing import NamedTuple

from benchmarks import scores
from benchmarks.kernels import layers, optimizer, threshold
from benchmarks.kernels.setting import COPY, DENSE, FLOAT_MASK, OURS, READ

Key = tuple[str, str, str, str]  # operation, direction, case, contender


class Target(NamedTuple):
    """``most`` bounds the median of ours over that of ``against``, on the same case unless another is named."""

    device: str
    operation: str
    direction: str
    case: str
    against: str
    most: float
    against_case: str | None = None

    def ratio(self, medians: dict[Key, float]) -> float | None:
        """The ratio as measured, or None where one side was not."""
        ours = medians.get((self.operation, self.direction, self.case, OURS))
        other = medians.get((self.operation, self.direction, self.against_case or self.case, self.against))
        return None if ours is None or other is None else ours / other

    @property
    def versus(self) -> str:
        return f"itself, {self.against_case}" if self.against_case else self.against


THRESHOLD = ("topk_threshold", "forward")
WARM = (*THRESHOLD, threshold.WARM)
UNUSUAL = [each for each in scores.DISTRIBUTIONS if each != scores.USUAL]
UP_PROJECTION, ALL = "3072 × 768", "73 matrices"
EMBEDDING = ("masked_embedding", "forward", f"{layers.IDS} ids of 30522")

TARGETS = [
    Target("cpu", *THRESHOLD, scores.USUAL, threshold.PARTITION, 0.35),
    Target("cpu", *THRESHOLD, scores.USUAL, threshold.KTHVALUE, 1 / 20),
    *(Target("cpu", *THRESHOLD, case, OURS, 3.0, scores.USUAL) for case in UNUSUAL),
    Target("cpu", *WARM, READ, 2.0),
    *(Target("cpu", "mask_weight", "forward", case, COPY, 1.3) for case in (UP_PROJECTION, ALL)),
    *(Target("cpu", "ste_backward", "backward", case, COPY, 1.2) for case in (UP_PROJECTION, ALL)),
    Target("cpu", "pattern_adamw", "both", f"{ALL}, {optimizer.PATTERN}", optimizer.UNSTRUCTURED, 0.9),
    Target("cpu", "masked_linear", "both", "2048 tokens", DENSE, 1.08),
    Target("cpu", "masked_linear", "both", "256 tokens", DENSE, 1.25),
    *(Target("cpu", *EMBEDDING, each, 1 / 20) for each in (FLOAT_MASK, layers.WHOLE_MATRIX)),
    Target("cuda", *THRESHOLD, scores.USUAL, READ, 3.3),
    Target("cuda", *THRESHOLD, scores.USUAL, threshold.KTHVALUE, 1 / 100),
    Target("cuda", *THRESHOLD, scores.USUAL, threshold.TOPK, 1 / 5),
    Target("cuda", *THRESHOLD, scores.USUAL, threshold.SORT, 1 / 5),
    Target("cuda", *WARM, READ, 1.4),
    Target("cuda", "mask_weights", "forward", ALL, COPY, 1 / 0.85),
    Target("cuda", "ste_backward", "backward", ALL, COPY, 1 / 0.85),
    Target("cuda", "mask_adamw", "both", ALL, COPY, 1 / 0.75),
    Target("cuda", "pattern_adamw", "both", f"{ALL}, {optimizer.PATTERN}", COPY, 1 / 0.75),
    Target("cuda", "pattern_adamw", "both", f"{ALL}, {optimizer.PATTERN}", optimizer.UNSTRUCTURED, 0.9),
    Target("cuda", "masked_linear", "both", "2048 tokens", DENSE, 1.05),
    Target("cuda", "masked_linear", "both", "256 tokens", DENSE, 1.10),
    *(Target("cuda", "masked_linear", "forward", f"{n} tokens", layers.WHOLE_MATRIX, 1.0) for n in (1, 16, 64)),
    *(Target("cuda", *EMBEDDING, each, 1 / 20) for each in (FLOAT_MASK, layers.WHOLE_MATRIX)),
]
