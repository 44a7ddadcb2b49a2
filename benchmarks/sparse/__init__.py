"""``python -m benchmarks sparse``: products with the kept entries of a weight, by turns with the best dense ones.

The six products of a BERT-base layer, a whole BERT-base, and a step of its fine-tuning, with each number of threads.
Gains are over the fastest dense contender of the same type in the same run. With one thread, times are its CPU time,
else wall clock; what a layer does besides, such as packing its input, is within them.
"""

import argparse
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import machine, report
from benchmarks.sparse import instructions, model, picture, step
from benchmarks.sparse.products import CSR, SPARSE, Layers, Times, break_even, dtypes, gain, has_onnx_runtime, timed
from benchmarks.sparse.targets import MODEL, PRODUCTS, STEP, verdicts
from tamt.runtime.errors import UserError

TOKENS, SPARSITIES, MODEL_TOKENS = (1, 8, 32, 128, 512), (0.5, 0.7, 0.8, 0.9), 128
PARTS = {"products": PRODUCTS, "model": MODEL, "step": STEP}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--tokens", type=_integers, default=TOKENS, help="numbers of tokens (default: 1,8,32,128,512)")
    parser.add_argument("--sparsities", type=_shares, default=SPARSITIES, help="shares of zeros (default: .5,.7,.8,.9)")
    parser.add_argument("--rounds", type=int, default=7, help="passes of each contender (default: 7)")
    parser.add_argument("--threads", type=_integers, default=(1,), help="numbers of threads (default: 1)")
    parser.add_argument(
        "--instructions", choices=("avx2",), help="use no newer instruction set, dense and sparse (default: the CPU's)"
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="one of several; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny matrices: a check, no figures")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results/DEVICE)")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def run(options: argparse.Namespace) -> None:
    """Measure, and leave ``sparse.csv``, ``sparse.md`` and ``sparse.png`` in the output folder.

    Raises:
        UserError: an option is out of range, or the folder cannot be made.
    """
    if min(options.tokens) < 1 or options.rounds < 1 or min(options.threads) < 1:
        raise UserError("--tokens, --rounds and --threads must be at least 1")
    if len(set(options.sparsities)) < 2 or not all(0 < each < 1 for each in options.sparsities):
        raise UserError("--sparsities must be two or more shares between 0 and 1, separated by commas")
    if options.instructions:
        instructions.limit(options.instructions)
    device = torch.device("cpu")
    parts = "-".join(dict.fromkeys(options.part or ()))
    folder = options.output or machine.results_folder(device) / (options.instructions or "") / parts
    results = report.Csv.in_folder(folder, "sparse.csv")
    threads = " and ".join(map(str, options.threads))
    described = machine.describe(device) | {"threads": threads, "instructions": instructions.used()}
    described["onnxruntime"] = version("onnxruntime") if has_onnx_runtime(torch.float32) else "left out"
    heading = machine.in_words(described)
    print(heading, flush=True)
    measured = {count: measure(options, count, results, described) for count in options.threads}
    results.close()
    page = [heading, *(section for count, each in measured.items() for section in sections(count, each.times))]
    first = next(iter(measured.values()))
    if first.facts:
        page.append(facts_table(first.facts))
    page.append("A quick run: no figures." if options.quick else judged(measured, described["instructions"]))
    (folder / "sparse.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print("\n" + "\n\n".join(page[1:]))
    title = f"{described['cpu']}, {report.counted(options.threads[0], 'thread')}, torch {described['torch']}"
    if PRODUCTS in first.times and (problem := picture.draw(folder / "sparse.png", title, first.times[PRODUCTS])):
        print(problem)
    print(f"\nresults: {folder}")


Facts = dict[tuple[str, float], tuple[float, float]]  # how many times smaller, and the largest difference


class Measured(NamedTuple):
    """The times of each part that was asked for, and what else there is to say: see ``Layers`` and ``model.measured``.

    Facts are by type and sparsity, differences by sparsity.
    """

    times: dict[str, Times]
    facts: Facts
    differences: dict[float, float]


def measure(options: argparse.Namespace, threads: int, results: report.Csv, described: dict[str, str]) -> Measured:
    """Measure with so many threads."""
    torch.set_num_threads(threads)
    described = described | {"threads": str(threads)}
    measured = Measured({}, {}, {})

    def keep(part: str, times: Times) -> None:
        measured.times.setdefault(part, {}).update(times)
        results.write(rows(part, times, described))
        print("\n" + listed(times), flush=True)

    asked = [PARTS[each] for each in options.part or PARTS]
    if PRODUCTS in asked:
        for dtype in dtypes():
            layers = Layers(dtype, options.sparsities, options.quick)
            for sparsity in options.sparsities:
                smaller, difference = layers.times_smaller(sparsity), layers.largest_difference(sparsity)
                measured.facts[layers.name, sparsity] = smaller, difference
            for tokens in options.tokens:
                contenders = dict(layers.contenders(tokens))
                # After the others: a tenth of their time is lost when it runs between them.
                last = {key: contenders.pop(key) for key in list(contenders) if key.contender == CSR}
                keep(PRODUCTS, timed(contenders, options.rounds) | timed(last, options.rounds))
    if MODEL in asked:
        times, differences = model.measured(options.sparsities, MODEL_TOKENS, options.rounds, options.quick)
        measured.differences.update(differences)
        keep(MODEL, times)
    if STEP in asked:  # of seconds each, so that fewer will do
        keep(STEP, step.measured(options.sparsities, math.ceil(options.rounds / 2), options.quick))
    return measured


def sections(threads: int, times: dict[str, Times]) -> list[str]:
    """The tables of gains."""
    return [gains(f"{part}, {report.counted(threads, 'thread')}", each) for part, each in times.items()]


def judged(measured: dict[int, Measured], used: str) -> str:
    """The targets, which are for one thread."""
    return verdicts(used, *measured[1]) if 1 in measured else "Targets are for one thread."


def rows(part: str, times: Times, described: dict[str, str]) -> Iterator[report.Row]:
    """A row of the CSV for each contender."""
    for key, each in times.items():
        yield {"part": part, **key._asdict(), "ms": each, **described}


def listed(times: Times) -> str:
    """What was measured, as a table."""
    heading = ("type", "tokens", "sparsity", "contender", "ms")
    lines = [
        (
            key.dtype,
            str(key.tokens),
            "" if key.sparsity is None else f"{key.sparsity:.0%}",
            key.contender,
            report.figure(each),
        )
        for key, each in times.items()
    ]
    return report.table([heading, *lines])


def gains(part: str, times: Times) -> str:
    """Gains over the best dense contender by tokens and sparsity; a share below 1 is slower, which is said."""
    sparsities = sorted({key.sparsity for key in times if key.sparsity is not None})
    contenders = [each for each in (SPARSE, CSR) if any(key.contender == each for key in times)]
    lines = [(part, "type", "tokens", *(f"{each:.0%}" for each in sparsities), "faster from")]
    for contender in contenders:
        cases = dict.fromkeys(key[:2] for key in times if key.contender == contender)
        for dtype, tokens in cases:
            shares = [gain(times, dtype, tokens, each, contender) for each in sparsities]
            told = [f"{each:.2f} ×" + (" slower" if each < 1 else "") for each in shares]
            lines.append((contender, dtype, str(tokens), *told, _percent(break_even(times, dtype, tokens, contender))))
    return report.table(lines)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def facts_table(facts: Facts) -> str:
    """Memory and exactness of the products."""
    lines = [("type", "sparsity", "weights in memory", "largest difference")]
    for (dtype, sparsity), (smaller, difference) in facts.items():
        lines.append((dtype, f"{sparsity:.0%}", f"{smaller:.2f} × smaller", f"{difference:.1e}"))
    return report.table(lines)
