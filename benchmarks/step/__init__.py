"""``python -m benchmarks step``: a whole step of a search, by turns with what could take its place."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks import clocks, machine, report
from benchmarks.measure import Measurement, check_seconds, made, measure
from benchmarks.step import memory, profile
from benchmarks.step.contenders import (
    CONTENDERS,
    MODELS,
    NEEDS_BF16_CPU,
    NEEDS_COMPILER,
    NEEDS_GPU,
    NO_GRAPHS,
    OURS,
    Setting,
)
from benchmarks.step.targets import verdicts
from tamt.runtime.errors import UserError
from tamt.training.precision import cpu_has_bf16

DEFAULT_BATCH = {"cpu": "4x128", "cuda": "16x512"}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_options(parser, DEFAULT_BATCH)
    parser.add_argument("--objective", choices=CONTENDERS, action="append", help="one of several; all by default")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each comparison, after warm-up (default: 30)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, which takes a process each")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")


def add_options(parser: argparse.ArgumentParser, batches: dict[str, str]) -> None:
    """The options of every command that takes whole steps."""
    default = ", ".join(f"{batch} on {device}" for device, batch in batches.items())
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True, help="where to run")
    parser.add_argument("--model", choices=list(MODELS), default="bert-base", help="the shape; weights are random")
    parser.add_argument("--batch", help=f"blocks x tokens of a step (default: {default})")
    parser.add_argument("--accumulation", type=int, default=1, help="parts that a step's batch comes in (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, no torch.compile: a check, no figures")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results/DEVICE)")


def setting_of(options: argparse.Namespace, batches: dict[str, str]) -> Setting:
    """What the options ask for.

    Raises:
        UserError: there is no such device, or the batch is none that the model takes.
    """
    device = machine.device(options.device)
    text = "2x16" if options.quick else options.batch or batches[device.type]
    blocks, _, length = text.replace("×", "x").partition("x")
    if not (blocks.isdecimal() and length.isdecimal() and int(blocks) >= 1 and int(length) >= 4):
        raise UserError(f"--batch {text} is not blocks x tokens; give 4x128 for 4 blocks of 128 tokens, say")
    if options.accumulation < 1 or int(blocks) % options.accumulation:
        raise UserError(f"--accumulation {options.accumulation} does not divide the {blocks} blocks of the batch")
    model = "tiny" if options.quick else options.model
    setting = Setting(device, model, int(blocks), int(length), options.accumulation)
    if setting.length > setting.longest:
        raise UserError(f"--batch {text} has {length} tokens a block, but {model} takes {setting.longest} at most")
    return setting


def results_in(options: argparse.Namespace, setting: Setting, name: str) -> tuple[Path, report.Csv]:
    """The output folder, made, and the CSV file in it.

    Raises:
        UserError: the folder cannot be made.
    """
    folder = options.output or machine.results_folder(setting.device)
    return folder, report.Csv.in_folder(folder, f"{name}.csv")


def run(options: argparse.Namespace) -> None:
    """Measure, and leave ``step.csv``, ``step.md`` and ``step.png`` in the output folder.

    Raises:
        UserError: see `setting_of` and `results_in`; the seconds are negative.
    """
    setting = setting_of(options, DEFAULT_BATCH)
    check_seconds(options.seconds)
    folder, results = results_in(options, setting, "step")
    described = machine.describe(setting.device)
    case = f"{setting.model}, {setting.batch} × {setting.length} tokens"
    heading = ", ".join([case, *(f"{name} {value}" for name, value in described.items())])
    print(heading, flush=True)
    clock = clocks.clock(setting.device)
    sections: list[str] = []
    medians: dict[tuple[str, str], float] = {}
    peaks: dict[tuple[str, str], int | None] = {}
    bookkeeping: float | None = None
    left_out = _left_out(options, setting)
    for objective in options.objective or CONTENDERS:
        makers = CONTENDERS[objective]
        steps = made({name: partial(make, setting) for name, make in makers.items() if name not in left_out}, OURS)
        measured = measure(steps, clock, options.seconds, OURS)
        # A profile does not tell which operation a kernel of a graph is of; without graphs the same kernels run.
        profiled_name = NO_GRAPHS if setting.on_gpu else OURS
        of_search = objective in ("mlm", "kd") and profiled_name in measured
        profiled = profile.of_step(steps[profiled_name], setting.device) if of_search else None
        del steps
        for name, each in measured.items():
            medians[objective, name] = each.median_ms
            peaks[objective, name] = (
                None if options.quick or options.no_memory else memory.peak(setting, objective, name)
            )
        results.write(
            {
                "model": setting.model,
                "batch": setting.batch,
                "length": setting.length,
                "objective": objective,
                "contender": name,
                **each._asdict(),
                "tokens_per_s": setting.tokens / each.median_ms * 1e3,
                "peak_memory": peaks[objective, name],
                **described,
            }
            for name, each in measured.items()
        )
        sections.append(summary(objective, measured, setting, peaks))
        print("\n" + sections[-1], flush=True)
        if profiled:
            bookkeeping = profiled.bookkeeping if objective == "mlm" else bookkeeping
            sections.append(f"Where the time of {profiled_name}, {objective} goes:\n\n{profiled.table}")
            print("\n" + sections[-1], flush=True)
        judged = "A quick run: no figures." if options.quick else verdicts(setting, medians, peaks, bookkeeping)
        content = "\n\n".join([heading, judged, *sections])
        (folder / "step.md").write_text(content + "\n", encoding="utf-8")
    results.close()
    print("\n" + judged)
    _draw(folder, ", ".join([case, *(described[name] for name in ("device", "cpu", "commit"))]), medians)
    print(f"\nresults: {folder}")


def _left_out(options: argparse.Namespace, setting: Setting) -> set[str]:
    """The contenders that cannot run here, or that were not asked for."""
    left_out = NEEDS_COMPILER if options.quick or options.no_compile else set()
    left_out = left_out | (set() if setting.on_gpu else NEEDS_GPU)
    return left_out | (set() if not setting.on_gpu and cpu_has_bf16() else NEEDS_BF16_CPU)


def _draw(folder: Path, title: str, medians: Mapping[tuple[str, str], float]) -> None:
    """Draw the medians, in ms by objective and contender, as bars."""
    panels: dict[str, dict[str, float]] = {}
    for (objective, name), median in medians.items():
        panels.setdefault(objective, {})[name] = median
    if problem := report.bars(folder / "step.png", title, panels, OURS, (0.5, 1, 2, 5)):
        print(problem)


def summary(
    objective: str,
    measured: dict[str, Measurement],
    setting: Setting,
    peaks: dict[tuple[str, str], int | None],
) -> str:
    """The contenders of one objective as a table."""
    ours = measured[OURS].median_ms
    lines = [(f"step, {objective}", "median ms", "20 %", "80 %", "tokens/s", "peak MB", "ours / this")]
    for name, each in measured.items():
        peak = peaks[objective, name]
        lines.append(
            (
                name,
                report.figure(each.median_ms),
                report.figure(each.p20_ms),
                report.figure(each.p80_ms),
                report.figure(setting.tokens / each.median_ms * 1e3),
                "–" if peak is None else f"{peak / 1e6:.0f}",
                f"{ours / each.median_ms:.3g}",
            )
        )
    return report.table(lines)
