"""``python -m benchmarks search``: the time to a mask, the paper's Table 3 for this machine."""

import argparse
from collections.abc import Callable
from functools import partial

from benchmarks import clocks, machine, report
from benchmarks.measure import made, measure
from benchmarks.step import add_options, results_in, setting_of
from benchmarks.step.contenders import CONTENDERS, IMP, OURS, Setting, Step
from tamt import methods
from tamt.runtime.errors import UserError

BATCH = {"cpu": "16x512", "cuda": "16x512"}
METHODS = [method for method in methods.METHODS.values() if method.paper_seconds]
"""The methods whose time the paper gives (Table 3)."""
STEPS = 22_000


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_options(parser, BATCH)


def run(options: argparse.Namespace) -> None:
    """Measure a few steps of each method by turns, and leave ``search.csv`` and ``search.md`` in the output folder.

    Raises:
        UserError: see `setting_of` and `results_in`; no method can be measured.
    """
    setting = setting_of(options, BATCH)
    folder, results = results_in(options, setting, "search")
    described = machine.describe(setting.device)
    case = f"{setting.model}, {setting.batch} × {setting.length} tokens in {setting.accumulation} parts"
    heading = ", ".join([case, *(f"{name} {value}" for name, value in described.items())])
    print(heading, flush=True)
    makers = {method.label: partial(_contender(method), setting) for method in METHODS}
    measured = measure(made(makers), clocks.clock(setting.device), 0)
    if not measured:
        raise UserError("no method can be measured here, for the reasons above; give a smaller --batch")
    published = {m.label: _hours(m.paper_seconds[setting.model]) for m in METHODS if setting.model in m.paper_seconds}
    lines = [("method", "step, ms", "20 %", "80 %", "1,000 steps, s", "22 k steps, extrapolated", "the paper's")]
    for name, each in measured.items():
        lines.append(
            (
                name,
                report.figure(each.median_ms),
                report.figure(each.p20_ms),
                report.figure(each.p80_ms),
                report.figure(each.median_ms),
                _hours(each.median_ms * STEPS / 1e3),
                published.get(name, "–"),
            )
        )
    results.write(
        {
            "model": setting.model,
            "batch": setting.batch,
            "length": setting.length,
            "method": name,
            "median_ms": each.median_ms,
            "p20_ms": each.p20_ms,
            "p80_ms": each.p80_ms,
            "samples": each.samples,
            "seconds_per_1000_steps": each.median_ms,
            **described,
        }
        for name, each in measured.items()
    )
    results.close()
    samples = min(each.samples for each in measured.values())
    note = f"Measured on {samples} steps each, in turns; all else is extrapolated. The paper's: one V100 with 32 GB."
    shown = report.table(lines) + f"\n\n{note}"
    (folder / "search.md").write_text(f"{heading}\n\n{shown}\n", encoding="utf-8")
    print(f"\n{shown}\n\nresults: {folder}")


def _contender(method: methods.Method) -> Callable[[Setting], Step]:
    return CONTENDERS["+".join(method.objective)][OURS if method.trains_scores else IMP]


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02}"
