"""Numbers as text for readers."""

import math

from tamt.report.statistics import Summary


def summary_text(summary: Summary) -> str:
    """Mean ± standard deviation with the same digits, and the number of runs."""
    digits = summary.digits
    if digits is None:
        digits = 1 if abs(summary.mean) >= 10 else 3
    spread = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread} ({summary.runs} run{'s' * (summary.runs != 1)})"


def percent(share: float) -> str:
    """A share of 0.7 as 70 %."""
    return f"{100 * share:g} %"


def number(value: float) -> str:
    """A number with about three digits, and commas between thousands."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"
