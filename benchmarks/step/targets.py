"""What a step is held to: at most so many times what another contender takes in the same run."""

from typing import NamedTuple

from benchmarks import report
from benchmarks.step.contenders import (
    DENSE,
    FINE_TUNING,
    HF_BF16,
    HF_FINE_TUNING,
    HUGGING_FACE,
    NEEDED,
    ORDINARY,
    OURS,
    OURS_BF16,
    Setting,
)
from tamt_kernels.backend import product_library

Key = tuple[str, str]  # objective, contender


class Target(NamedTuple):
    """``most`` bounds the time of ``ours`` over that of ``against`` for one objective, by kind of device."""

    objective: str
    against: str
    most: dict[str, float]
    ours: str = OURS


FASTER_PRODUCTS = "cpu, oneDNN faster"
"""A CPU on which oneDNN was measured to be the faster library for float32 products."""

TIMES = [
    Target("mlm", HUGGING_FACE, {"cpu": 0.90, FASTER_PRODUCTS: 0.40, "cuda": 0.85}),
    Target("mlm", HUGGING_FACE, {"cpu": 0.26}, OURS_BF16),
    Target("mlm", HF_BF16, {"cpu": 0.80}, OURS_BF16),
    Target("mlm", ORDINARY, {"cpu": 0.60, "cuda": 0.50}),
    Target("kd", NEEDED, {"cpu": 1.05, "cuda": 1.05}),
    Target(FINE_TUNING, DENSE, {"cpu": 1.03, "cuda": 1.03}),
    Target(FINE_TUNING, HF_FINE_TUNING, {"cpu": 0.40}, OURS_BF16),
]
PEAKS = [Target("mlm", ORDINARY, {"cpu": 0.75, "cuda": 0.60}), Target("kd", ORDINARY, {"cpu": 0.75, "cuda": 0.60})]
BOOKKEEPING = {"cpu": 0.10, "cuda": 0.12}
SEARCH_STEPS, SEARCH_MINUTES = 22_000, 10.0  # on one H100, where the paper's V100 takes 3 h 55


def verdicts(
    setting: Setting, medians: dict[Key, float], peaks: dict[Key, int | None], bookkeeping: float | None
) -> str:
    """The targets as a table, met or not. They are for BERT-base, 4 × 128 tokens on a CPU and 16 × 512 on a GPU."""
    device = setting.device.type
    kinds = (device,) if device == "cuda" or product_library.is_only_torch() else (FASTER_PRODUCTS, device)
    lines: list[tuple[str, ...]] = [("target", "against", "at most", "measured", "met")]
    for what, targets, figures in (("time", TIMES, medians), ("peak memory", PEAKS, peaks)):
        for target in (each for each in targets if device in each.most):
            mine, other = (figures.get((target.objective, name)) for name in (target.ours, target.against))
            ratio = mine / other if mine and other else None
            most = next(target.most[kind] for kind in kinds if kind in target.most)
            name = f"{what}, {target.objective}" + (", bf16" if target.ours == OURS_BF16 else "")
            lines.append(_line(name, target.against, most, ratio, " ×"))
    share = None if bookkeeping is None else 100 * bookkeeping
    lines.append(_line("MaskAdamW.step, mlm", "the whole step", 100 * BOOKKEEPING[device], share, " %"))
    if device == "cuda":
        median = medians.get(("mlm", OURS))
        minutes = None if median is None else median * SEARCH_STEPS / 60e3
        lines.append(_line("22 k steps, mlm, extrapolated", "–", SEARCH_MINUTES, minutes, " min"))
    return report.table(lines)


def _line(what: str, against: str, most: float, measured: float | None, unit: str) -> tuple[str, ...]:
    if measured is None:
        return what, against, f"{most:.3g}{unit}", "not measured", "–"
    return what, against, f"{most:.3g}{unit}", f"{measured:.3g}{unit}", "yes" if measured <= most else "no"
