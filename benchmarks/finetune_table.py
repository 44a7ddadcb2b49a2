"""Real fine-tunings of the demo's model: the full model and subnetworks, task by task, as a table.

    python -m benchmarks.finetune_table --data DIR --output DIR [--results DIR]

DIR of the data holds GLUE's `glue` folder, a `squad` folder and `text/enwiki-sample.txt`. The table is written anew
after every run. What is finished in the output folder is not done again, so it can be stopped at any time.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.report import Csv, table
from tamt.console import say
from tamt.files import write_atomically
from tamt.finetune import finetune
from tamt.run_folder import finished_results
from tamt.search import train

MODEL = "demo"
SEARCH: dict[str, Any] = {"model": MODEL, "max_length": 128, "batch_size": 8, "eval_blocks": 32, "save_every": 50}
STEPS = 300
SUBNETWORKS = {"full": None, "omp-70": 0.7, "tamt-kd-70": 0.7, "omp-50": 0.5, "tamt-kd-50": 0.5}

# MiniLM is a fifth of BERT-base and wants a larger rate than the paper's 2e-5; lengths hold all but the longest rows.
COMMON: dict[str, Any] = {"model": MODEL, "lr": 1e-4, "save_every": 50}
TASKS: dict[str, dict[str, Any]] = {
    "stsb": {"folder": "glue", "max_length": 64, "epochs": 1, "eval_every": 90},
    "sst2": {"folder": "glue", "max_length": 64, "epochs": 1, "eval_every": 125, "train_samples": 8000},
    "rte": {"folder": "glue", "max_length": 96, "epochs": 1, "eval_every": 39},
    "cola": {"folder": "glue", "max_length": 64, "epochs": 1, "eval_every": 134},
    "squad": {"folder": "squad", "max_length": 192, "epochs": 3, "eval_every": 1000, "batch_size": 8},
}


def main(arguments: list[str] | None = None) -> None:
    """Run what is not finished yet and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune_table", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with glue, squad and text")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the table; that of the runs by default")
    parser.add_argument("--subnetworks", nargs="+", choices=SUBNETWORKS, default=list(SUBNETWORKS), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    options = parser.parse_args(arguments)
    for name in options.subnetworks:
        mask = _mask(name, options.data, options.output)
        for task in options.tasks:
            settings = {**COMMON, **TASKS[task], "task": task, "mask": mask, "seed": 0}
            settings["data_dir"] = options.data / settings.pop("folder")
            folder = options.output / "finetune" / f"{task}-{name}"
            say(f"{task} {name}")
            _run(finetune, folder, settings)
            shutil.rmtree(folder / "model", ignore_errors=True)  # 90 MB each
            write_table(options.output, options.results or options.output)


def _mask(name: str, data: Path, output: Path) -> Path | None:
    sparsity = SUBNETWORKS[name]
    if sparsity is None:
        return None
    method = name.rsplit("-", 1)[0]
    settings = {"method": method, "model": MODEL, "sparsity": sparsity}
    if method != "omp":
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
    """Write `finetune.csv`, a row a run, and `finetune.md`, the scores by task and subnetwork, of finished runs."""
    rows = []
    for task in TASKS:
        for name in SUBNETWORKS:
            folder = output / "finetune" / f"{task}-{name}"
            if not (folder / "results.json").is_file():
                continue
            (row,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
            described = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
            chosen = {key: TASKS[task].get(key) for key in ("epochs", "max_length")}
            dev = json.dumps(row.pop("dev"))
            for path in ("output", "mask"):
                row.pop(path)
            rows.append({"subnetwork": name, **row, "dev": dev, "lr": COMMON["lr"], **chosen, **described})
    if not rows:
        return
    results.mkdir(parents=True, exist_ok=True)
    file = Csv(results / "finetune.csv")
    file.write(rows)
    file.close()
    cells: list[Sequence[str]] = [["subnetwork", *(f"{task} ({_metric(rows, task)})" for task in TASKS)]]
    for name in SUBNETWORKS:
        found = {row["task"]: row for row in rows if row["subnetwork"] == name}
        cells.append([name, *(_cell(found.get(task)) for task in TASKS)])
    write_atomically(results / "finetune.md", table(cells) + "\n")


def _metric(rows: list[dict], task: str) -> str:
    return next((row["metric"] for row in rows if row["task"] == task), "not run")


def _cell(row: dict | None) -> str:
    if row is None:
        return "–"
    score = "undefined" if row["score"] is None else f"{row['score']:.3f}"
    return f"{score} ({row['seconds']:.0f} s)"


if __name__ == "__main__":
    main()
