"""``python -m benchmarks shrunk``: an encoder of BERT-base's size without the groups of a structured mask, on a CPU.

Random weights and masks take the time of real ones. All models take turns. With one thread, times are its CPU time,
else wall clock.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks import machine, report
from tamt.masks.groups import find_groups
from tamt.masks.masking import random_masks
from tamt.models.shrink import shrink
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure
from tamt_kernels.backend.timing import times_by_turns

STRUCTURES = ("ffn:0.5", "layers:0.5", "heads:0.5,hidden:0.5", "ffn:0.5,heads:0.5,hidden:0.5")
MOST = {"ffn:0.5": 0.70}
"""What the time is held to, as a share of the dense model's."""
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--batch-size", type=int, default=8, help="texts at once (default: 8)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a text (default: 128)")
    parser.add_argument("--rounds", type=int, default=7, help="passes of each model (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a tiny model: a check, no figures")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results/DEVICE)")


def run(options: argparse.Namespace) -> None:
    """Measure, and leave ``shrunk.csv`` and ``shrunk.md`` in the output folder.

    Raises:
        UserError: an option is out of range, or the folder cannot be made.
    """
    if min(options.batch_size, options.tokens, options.rounds, options.threads) < 1:
        raise UserError("--batch-size, --tokens, --rounds and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    folder = options.output or machine.results_folder(device)
    results = report.Csv.in_folder(folder, "shrunk.csv")
    described = machine.describe(device)
    heading = machine.in_words(described)
    torch.manual_seed(0)
    models = shrunk_models(BertModel(BertConfig(**(TINY if options.quick else {}))).eval())
    times = measured(models, torch.randint(1000, 2000, (options.batch_size, options.tokens)), options.rounds)
    shape = {"batch_size": options.batch_size, "tokens": options.tokens}
    sizes = {name: model.num_parameters() for name, model in models.items()}
    results.write(
        {"structure": name, **shape, "median_ms": time, "parameters": sizes[name], **described}
        for name, time in times.items()
    )
    results.close()
    title = f"{options.batch_size} × {options.tokens} tokens, float32"
    page = f"{heading}\n\n{title}\n\n{table(times, sizes)}\n"
    if options.quick:
        page += "\nA quick run: no figures.\n"
    (folder / "shrunk.md").write_text(page, encoding="utf-8")
    print(page)
    print(f"results: {folder}")


def shrunk_models(dense: BertModel) -> dict[str, BertModel]:
    """The dense encoder, and its shrunk ones by their structures."""
    models = {"dense": dense}
    for text in STRUCTURES:
        structure = Structure.parse(text)
        sizes = find_groups(dense, structure.kinds).sizes
        masks = random_masks({name: torch.empty(size) for name, size in sizes.items()}, structure, seed=0)
        shrunk = shrink(dense, masks)
        assert isinstance(shrunk, BertModel)
        models[text] = shrunk
    return models


@torch.inference_mode()
def measured(models: dict[str, BertModel], ids: Tensor, rounds: int) -> dict[str, float]:
    """The median milliseconds of a forward pass of each model."""
    times = times_by_turns({name: partial(model, ids) for name, model in models.items()}, rounds)
    return {name: 1000 * median(seconds) for name, seconds in times.items()}


def table(times: dict[str, float], sizes: dict[str, int]) -> str:
    """Times, sizes, and whether the targets are met."""
    lines = [("encoder", "median ms", "times faster", "parameters", "share of the time", "held to", "met")]
    for name, time in times.items():
        share, most = time / times["dense"], MOST.get(name)
        judged = ("", "") if most is None else (f"{most:.2f}", "yes" if share <= most else "no")
        figures = (f"{time:.4g}", f"{1 / share:.2f} ×", f"{sizes[name] / 1e6:.1f} M", f"{share:.2f}")
        lines.append((name, *figures, *judged))
    return report.table(lines)
