"""``python -m benchmarks search``: the time to a mask, the paper's Table 3 for this machine."""

import argparse
from functools import partial

from benchmarks import clocks, machine, report
from benchmarks.measure import made, measure
from benchmarks.step import add_options, results_in, setting_of
from benchmarks.step.contenders import CONTENDERS, IMP, OURS
from tamt.errors import UserError

BATCH = {"cpu": "16x512", "cuda": "16x512"}
METHODS = {"IMP": ("mlm", IMP), "TAMT-MLM": ("mlm", OURS), "TAMT-KD": ("kd", OURS)}
STEPS = 22_000
PAPER = {
    "bert-base": {"IMP": "4 h 06", "TAMT-MLM": "3 h 55", "TAMT-KD": "4 h 47"},
    "roberta-base": {"IMP": "4 h 33", "TAMT-MLM": "4 h 17", "TAMT-KD": "4 h 52"},
}
"""Table 3: about 22 k steps on one V100 with 32 GB."""


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
    makers = {name: partial(CONTENDERS[objective][each], setting) for name, (objective, each) in METHODS.items()}
    measured = measure(made(makers), clocks.clock(setting.device), 0)
    if not measured:
        raise UserError("no method can be measured here, for the reasons above; give a smaller --batch")
    lines = [("method", "step, ms", "20 %", "80 %", "1,000 steps, s", "22 k steps, extrapolated", "the paper's")]
    for name, each in measured.items():
        hours, minutes = divmod(round(each.median_ms * STEPS / 60e3), 60)
        lines.append(
            (
                name,
                report.figure(each.median_ms),
                report.figure(each.p20_ms),
                report.figure(each.p80_ms),
                report.figure(each.median_ms),
                f"{hours} h {minutes:02}",
                PAPER.get(setting.model, {}).get(name, "–"),
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
