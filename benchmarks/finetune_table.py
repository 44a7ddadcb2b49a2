"""Real fine-tunings of the demo's model: the full model and subnetworks, task by task, as a table.

    OMP_NUM_THREADS=1 python -m benchmarks.finetune_table --data DIR --output DIR [--results DIR] [--seeds 0 1 2]

DIR of the data holds GLUE's `glue` folder, a `squad` folder and `text/enwiki-sample.txt`. The table is written anew
after every run. What is finished in the output folder is not done again, so it can be stopped at any time.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import machine
from benchmarks.report import Csv, table
from tamt.console import say
from tamt.data.tasks import find_task
from tamt.errors import UserError
from tamt.files import write_atomically
from tamt.finetune import finetune
from tamt.methods import METHODS
from tamt.run_folder import finished_results
from tamt.search import train

MODEL = "demo"
SEARCH: dict[str, Any] = {"model": MODEL, "max_length": 128, "batch_size": 8, "eval_blocks": 32, "save_every": 50}
STEPS = 300
SUBNETWORKS = {"full": None, "omp-70": 0.7, "tamt-kd-70": 0.7, "omp-50": 0.5, "tamt-kd-50": 0.5}

# MiniLM is a fifth of BERT-base and wants a larger rate than the paper's 2e-5; lengths hold all but the longest rows.
COMMON: dict[str, Any] = {"model": MODEL, "lr": 1e-4, "save_every": 50}
TASKS: dict[str, dict[str, Any]] = {
    "stsb": {"folder": "glue", "max_length": 64, "epochs": 3, "eval_every": 180},
    "sst2": {"folder": "glue", "max_length": 64, "epochs": 2, "eval_every": 125, "train_samples": 8000},
    "rte": {"folder": "glue", "max_length": 96, "epochs": 3, "eval_every": 78},
    "cola": {"folder": "glue", "max_length": 64, "epochs": 3, "eval_every": 268},
    "squad": {"folder": "squad", "max_length": 192, "epochs": 3, "eval_every": 1000, "batch_size": 8},
}


def main(arguments: list[str] | None = None) -> None:
    """Run what is not finished yet and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with glue, squad and text")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the table; that of the runs by default")
    parser.add_argument("--subnetworks", nargs="+", choices=SUBNETWORKS, default=list(SUBNETWORKS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of the fine-tunings")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    options = parser.parse_args(arguments)
    for seed, name in product(options.seeds, options.subnetworks):
        mask = _mask(name, options.data, options.output)
        for task in options.tasks:
            settings = {**COMMON, **TASKS[task], "task": task, "mask": mask, "seed": seed}
            settings["data_dir"] = options.data / settings.pop("folder")
            folder = options.output / "finetune" / f"{task}-{name}-{seed}"
            say(f"{task} {name} seed {seed}")
            _run(finetune, folder, settings)
            shutil.rmtree(folder / "model", ignore_errors=True)  # 90 MB each
            write_table(options.output, options.results or options.output)


def _mask(name: str, data: Path, output: Path) -> Path | None:
    sparsity = SUBNETWORKS[name]
    if sparsity is None:
        return None
    method = name.rsplit("-", 1)[0]
    settings = {"method": method, "model": MODEL, "sparsity": sparsity}
    if METHODS[method].needs_text:
        settings |= {**SEARCH, "corpus": [str(data / "text" / "enwiki-sample.txt")], "steps": STEPS}
    _run(train, output / "search" / name, settings)
    return output / "search" / name / "mask.safetensors"


def _run(command: Callable[..., dict], folder: Path, settings: dict[str, Any]) -> dict:
    """The result of a run, taken from its folder if it is finished there, else run or resumed; it says on what."""
    done = finished_results(folder, settings)
    if not done:
        done = command(**settings, output=folder, resume=True)["results"]
        described = machine.describe(torch.device("cpu"))
        write_atomically(folder / "machine.json", json.dumps(described, indent=2) + "\n")
    return done[0]


def write_table(output: Path, results: Path) -> None:
    """Write `finetune.csv`, a row a finished run, and `finetune.md`, the scores by task and subnetwork."""
    rows = [
        {"subnetwork": name, **_row(folder)}
        for task, name in product(TASKS, SUBNETWORKS)
        for folder in sorted((output / "finetune").glob(f"{task}-{name}-*"))
        if (folder / "results.json").is_file()
    ]
    results.mkdir(parents=True, exist_ok=True)
    file = Csv(results / "finetune.csv")
    file.write(rows)
    file.close()
    cells: list[list[str]] = [["subnetwork", *TASKS]]
    for name in SUBNETWORKS:
        found = [row for row in rows if row["subnetwork"] == name]
        cells.append([name, *(_cell([row for row in found if row["task"] == task]) for task in TASKS)])
    write_atomically(results / "finetune.md", table(cells) + "\n")


def _row(folder: Path) -> dict[str, Any]:
    """What a run asked for, what came out, and on what machine."""
    (result,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    described = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    task = find_task(result["task"])
    chosen = {name: settings[name] or getattr(task, name) for name in ("epochs", "batch_size", "max_length")}
    kept = {name: value for name, value in result.items() if name not in ("output", "mask", "dev")}
    return {**kept, "dev": json.dumps(result["dev"]), **chosen, **described}


def _cell(rows: list[dict[str, Any]]) -> str:
    """`Pearson 0.871 ± 0.002 of 3 seeds, 520 s`, the time being that of all of them."""
    if not rows:
        return "–"
    scores = [row["score"] for row in rows]
    if None in scores:
        return f"{rows[0]['metric']} undefined"
    spread = f" ± {statistics.stdev(scores):.3f} of {len(scores)} seeds" if len(scores) > 1 else ""
    return f"{rows[0]['metric']} {statistics.mean(scores):.3f}{spread}, {sum(row['seconds'] for row in rows):.0f} s"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"python -m benchmarks.finetune_table: error: {error}")
