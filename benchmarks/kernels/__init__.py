"""``python -m benchmarks kernels``: each operation of tamt_kernels, by turns with what could take its place."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import clocks, machine, report
from benchmarks.kernels import cosine, elementwise, layers, optimizer, threshold
from benchmarks.kernels.setting import OURS, Setting
from benchmarks.kernels.targets import TARGETS, Key
from benchmarks.measure import Comparison, Measurement, check_seconds, measure

OPERATIONS: dict[str, Callable[[Setting], Iterator[Comparison]]] = {
    "topk_threshold": threshold.comparisons,
    "mask_adamw": optimizer.comparisons,
    "pattern_adamw": optimizer.pattern_comparisons,
    "mask_weight": elementwise.mask_weight,
    "mask_weights": elementwise.mask_weights,
    "binarize": elementwise.binarize,
    "pack_mask": elementwise.pack,
    "unpack_mask": elementwise.unpack,
    "prune_": elementwise.prune,
    "ste_backward": elementwise.ste_backward,
    "ste_backward_into": elementwise.ste_backward_into,
    "masked_linear": layers.linear,
    "masked_embedding": layers.embedding,
    "cosine": cosine.comparisons,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True, help="where to run")
    parser.add_argument("--operation", choices=OPERATIONS, action="append", help="one of several; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison, after warm-up (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny matrices and no torch.compile: a check, no figures")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results/DEVICE)")


def run(options: argparse.Namespace) -> None:
    """Measure, and leave ``kernels.csv``, ``kernels.md`` and ``kernels.png`` in the output folder.

    The first two grow while it runs, so that a run that is cut short has told what it knew.

    Raises:
        UserError: there is no such device, the seconds are negative, or the folder cannot be made.
    """
    device = machine.device(options.device)
    check_seconds(options.seconds)
    folder = options.output or machine.results_folder(device)
    results = report.Csv.in_folder(folder, "kernels.csv")
    described = machine.describe(device)
    heading = machine.in_words(described)
    print(heading, flush=True)
    setting, clock = Setting(device, options.quick), clocks.clock(device)
    medians: dict[Key, float] = {}
    for operation in options.operation or OPERATIONS:
        for comparison in OPERATIONS[operation](setting):
            measured = measure(comparison.contenders, clock, options.seconds, OURS)
            results.write(rows(comparison, measured, described))
            print("\n" + summary(comparison, measured), flush=True)
            for name, measurement in measured.items():
                medians[(*comparison[:3], name)] = measurement.median_ms
        judged = "A quick run: no figures." if options.quick else verdicts(medians, device.type)
        (folder / "kernels.md").write_text(f"{heading}\n\n{judged}\n", encoding="utf-8")
    results.close()
    print("\n" + judged)
    panels: dict[str, dict[str, float]] = {}
    for (*comparison_key, name), median in medians.items():
        panels.setdefault(", ".join(comparison_key), {})[name] = median
    title = f"{described['device']}, {described['cpu']}, torch {described['torch']}, commit {described['commit']}"
    if problem := report.bars(folder / "kernels.png", title, panels, OURS):
        print(problem)
    print(f"\nresults: {folder}")


def rows(comparison: Comparison, measured: dict[str, Measurement], described: dict[str, str]) -> Iterator[report.Row]:
    """A row of the CSV for each contender."""
    for name, measurement in measured.items():
        yield {
            "operation": comparison.operation,
            "direction": comparison.direction,
            "case": comparison.case,
            "contender": name,
            **measurement._asdict(),
            "moved_bytes": comparison.moved,
            **described,
        }


def summary(comparison: Comparison, measured: dict[str, Measurement]) -> str:
    """One comparison as a table."""
    ours = measured[OURS].median_ms
    lines = [(", ".join(comparison[:3]), "median ms", "20 %", "80 %", "peak MB", "GB/s", "ours / this")]
    for name, each in measured.items():
        lines.append(
            (
                name,
                f"{each.median_ms:.4g}",
                f"{each.p20_ms:.4g}",
                f"{each.p80_ms:.4g}",
                "–" if each.peak_memory is None else f"{each.peak_memory / 1e6:.1f}",
                f"{comparison.moved / each.median_ms / 1e6:.4g}",
                f"{ours / each.median_ms:.3g}",
            )
        )
    return report.table(lines)


def verdicts(medians: dict[Key, float], device: str) -> str:
    """What the kernels are held to on this device, as measured."""
    lines = [("target", "against", "at most", "measured", "met")]
    for target in TARGETS:
        if target.device == device:
            ratio = target.ratio(medians)
            lines.append(
                (
                    f"{target.operation}, {target.direction}, {target.case}",
                    target.versus,
                    f"{target.most:.3g} ×",
                    "not measured" if ratio is None else f"{ratio:.3g} ×",
                    "–" if ratio is None else "yes" if ratio <= target.most else "no",
                )
            )
    return report.table(lines)
