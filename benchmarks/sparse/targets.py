"""What the sparse products are held to, on one thread."""

import math
from typing import NamedTuple

from benchmarks import report
from benchmarks.sparse.products import Times, break_even, gain

SPARSITIES = (0.7, 0.8, 0.9)


class Target(NamedTuple):
    """The least gain over the best dense contender at the first of SPARSITIES."""

    part: str
    dtype: str
    tokens: int
    least: tuple[float, ...]


PRODUCTS, MODEL, STEP = "six products of a layer", "BERT-base", "a step of fine-tuning BERT-base"
AVX512 = [
    Target(PRODUCTS, "float32", 1, (2.5, 3.0, 3.2)),
    Target(PRODUCTS, "float32", 8, (1.7, 2.3, 3.5)),
    *(Target(PRODUCTS, "float32", tokens, (2.1, 2.9, 4.6)) for tokens in (32, 128)),
    *(Target(PRODUCTS, "bfloat16", tokens, (1.8, 2.5, 3.7)) for tokens in (32, 128)),
    Target(MODEL, "float32", 128, (1.9, 2.3, 3.2)),
    Target(MODEL, "bfloat16", 128, (1.5, 1.9, 2.5)),
    Target(STEP, "float32", 32 * 64, (1.5, 2.0, 3.0)),
]
TARGETS = {"avx512": AVX512, "avx2": [Target(PRODUCTS, "float32", 128, (2.6, 3.9))]}
MOST_BREAK_EVEN = 0.33
LEAST_SMALLER = (2.6, 3.9, 7.5)
MOST_DIFFERENCE = 2e-6


def verdicts(
    instructions: str,
    times: dict[str, Times],
    facts: dict[tuple[str, float], tuple[float, float]],
    differences: dict[float, float],
) -> str:
    """The targets of an instruction set, what was measured, and whether they are met."""
    lines = [("target", "held to", "measured", "met")]
    for target in TARGETS.get(instructions, []):
        of_part = times.get(target.part, {})
        if any(key[:2] == (target.dtype, target.tokens) for key in of_part):
            for sparsity, least in zip(SPARSITIES, target.least, strict=False):
                found = gain(of_part, target.dtype, target.tokens, sparsity)
                case = f"{target.part}, {target.dtype}, {report.counted(target.tokens, 'token')}, {sparsity:.0%}"
                lines.append(_line(case, f"{least:.1f} × faster", f"{found:.2f} ×", found, found >= least))
    products = times.get(PRODUCTS, {})
    for tokens in sorted({key.tokens for key in products if key.tokens >= 32}):
        found = break_even(products, "float32", tokens)
        case = f"{PRODUCTS}, float32, {tokens} tokens, faster from"
        lines.append(_line(case, f"{MOST_BREAK_EVEN:.0%}", f"{found:.0%}", found, found <= MOST_BREAK_EVEN))
    for sparsity, least in zip(SPARSITIES, LEAST_SMALLER, strict=True):
        found, _ = facts.get(("float32", sparsity), (math.nan, math.nan))
        lines.append(
            _line(f"memory, float32, {sparsity:.0%}", f"{least:.1f} × smaller", f"{found:.2f} ×", found, found >= least)
        )
    found = max((differences[each] for each in SPARSITIES if each in differences), default=math.nan)
    met = found <= MOST_DIFFERENCE
    lines.append(_line(f"{MODEL}, float32, hidden states", f"{MOST_DIFFERENCE:.0e}", f"{found:.1e}", found, met))
    return report.table(lines)


def _line(case: str, held_to: str, measured: str, found: float, met: bool) -> tuple[str, str, str, str]:
    if math.isnan(found):
        return case, held_to, "not measured", "–"
    return case, held_to, measured, "yes" if met else "no"
