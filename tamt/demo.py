"""`tamt demo`: winning tickets of a small real model on real text, without a hub, in minutes."""

import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamt.methods import FULL, METHODS, OMP, RANDOM
from tamt.options.base import command
from tamt.options.demo import DemoOptions
from tamt.report.drawing import pyplot
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.training.run_folder import finished_results

SPARSITY = 0.7
SEARCHES = (OMP, RANDOM, "tamt-kd")
SEARCH: dict[str, Any] = {
    "model": "demo",
    "corpus": ["demo"],
    "sparsity": SPARSITY,
    "max_length": 128,
    "eval_blocks": 96,
    "save_every": 50,
}
FINETUNE: dict[str, Any] = {"task": "questions", "model": "demo", "epochs": 1, "eval_every": 10_000, "lr": 3e-4}
# lr: on 1,200 questions OMP scored 0.57 at 1e-4 and 0.65 at 3e-4, the full model 0.92 and 0.90.
LABELS = {FULL: "full model", **{name: METHODS[name].label for name in SEARCHES}}


@command(DemoOptions)
def demo(options: DemoOptions) -> dict:
    """Run `tamt demo`."""
    output = options.output
    if output.exists() and (output.is_file() or (any(output.iterdir()) and not (output / SEARCHES[0]).is_dir())):
        raise UserError(f"the output {output} contains other files than a demo; give a new --output")
    from tamt.finetuning.finetune import finetune
    from tamt.search.train import train

    seeds = options.seeds or [0, 1, 2]
    started = time.monotonic()
    searches: dict[str, dict] = {}
    for method in SEARCHES:
        say(f"[{method}] searching for a subnetwork at {SPARSITY:.0%} sparsity")
        settings = {**SEARCH, "method": method, "batch_size": options.batch_size, "steps": options.steps}
        searches[method] = _run(train, output / method, settings)
    results = []
    for method in LABELS:
        say(f"[{method}] fine-tuning on {options.train_samples} questions with {len(seeds)} seeds")
        mask = output / method / "mask.safetensors" if method in searches else None
        runs = []
        for seed in seeds:
            settings = {**FINETUNE, "mask": mask, "train_samples": options.train_samples, "seed": seed}
            folder = output / "finetune" / f"{method}-{seed}"
            runs.append(_run(finetune, folder, settings))
            shutil.rmtree(folder / "model", ignore_errors=True)  # 12 models of 90 MB each, which nothing needs
        search = searches.get(method, {"sparsity": 0.0, "kd_loss": 0.0, "seconds": 0.0})
        scores = [run["score"] for run in runs]
        results.append(
            {
                "method": method,
                "sparsity": search["sparsity"],
                "kd_loss": search["kd_loss"],
                "score": statistics.mean(scores),
                "score_std": statistics.stdev(scores) if len(seeds) > 1 else None,
                "scores": scores,
                "search_seconds": search["seconds"],
                "seconds": round(search["seconds"] + sum(run["seconds"] for run in runs), 1),
            }
        )
    write_atomically(output / "results.json", json.dumps({"results": results}, indent=2) + "\n")
    draw(results, output / "report.png")
    say(f"results in {output / 'results.json'}, picture in {output / 'report.png'}; {time.monotonic() - started:.0f} s")
    return {"results": results}


def draw(results: list[dict], path: Path) -> None:
    """Draw the KD loss and the fine-tuned score of each method into a PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    plt = pyplot("demo")
    found = [row for row in results if row["method"] != FULL]
    full = next(row for row in results if row["method"] == FULL)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for position, row in enumerate(found):
        colour, _ = METHODS[row["method"]].colours
        left.bar(position, row["kd_loss"], width=0.6, color=colour)
        left.text(position, row["kd_loss"], f"{row['kd_loss']:.3f}", ha="center", va="bottom")
        right.hlines(row["score"], position - 0.3, position + 0.3, color=colour, linewidth=2.5)
        offsets = [position + 0.12 * (i - (len(row["scores"]) - 1) / 2) for i in range(len(row["scores"]))]
        right.scatter(offsets, row["scores"], color=colour, s=18, zorder=3)
        right.text(position, max(row["scores"]) + 0.004, f"{row['score']:.3f}", ha="center", va="bottom")
    right.axhline(full["score"], color="black", linestyle="--", linewidth=1)
    right.text(-0.55, full["score"], f"full model {full['score']:.3f}", va="bottom")
    right.set_xlim(-0.6, len(found) - 0.4)
    right.margins(y=0.15)
    left.set_title("KD dev loss before fine-tuning (lower is better)", fontsize=10)
    right.set_title("accuracy after fine-tuning (line: mean, dots: seeds)", fontsize=10)
    for axes in (left, right):
        axes.set_xticks(range(len(found)), [LABELS[row["method"]] for row in found])
        axes.spines[["top", "right"]].set_visible(False)
    left.margins(y=0.15)
    figure.suptitle(f"6-layer MiniLM, {found[0]['sparsity']:.0%} of the weights pruned")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _run(command: Callable[..., dict], folder: Path, settings: dict[str, Any]) -> dict:
    """The last result of a run, which is started or resumed unless it is finished in its folder."""
    done = finished_results(folder, settings)
    return (done or command(**settings, output=folder, resume=folder.exists())["results"])[-1]
