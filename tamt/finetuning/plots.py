"""A picture of the best model's predictions: a confusion matrix, or true against predicted scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tamt.data.tasks import Task
from tamt.finetuning.loop import predictions_file
from tamt.runtime.console import say
from tamt.runtime.files import write_atomically

PICTURE = "predictions.png"
MOST_LABELS = 100
"""Of a confusion matrix; more are not readable, and its size grows with their square."""


def draw_predictions(task: Task, output: Path) -> None:
    """Draw the main dev set's predictions of a run folder into its `predictions.png`; SQuAD's have no picture.

    Without matplotlib nothing is drawn, which is logged. The user's pyplot and its backend do not change.
    """
    if task.kind == "question-answering":
        return
    if task.label_names is not None and len(task.label_names) > MOST_LABELS:
        say(f"no {PICTURE} was drawn, as {len(task.label_names):,} labels are more than {MOST_LABELS}")
        return
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        say(f"no {PICTURE} was drawn, it needs matplotlib: pip install 'tamt[plots]'")
        return

    lines = (output / predictions_file("")).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    predicted, true = ([row[side] for row in rows] for side in ("prediction", "label"))
    with rc_context({"text.parse_math": False}):  # a label such as $ is no formula
        figure = Figure(figsize=(4.8, 4.4), constrained_layout=True)
        axes = figure.subplots()
        if task.label_names is None:
            _scatter(axes, predicted, true)
        else:
            _confusion(axes, predicted, true, task.label_names)
        axes.set_title(f"{task.name}, {len(rows):,} dev rows", fontsize=10)
        write_atomically(output / PICTURE, lambda file: figure.savefig(file, format="png", dpi=150))


def _scatter(axes: Any, predicted: list[float], true: list[float]) -> None:
    axes.scatter(true, predicted, s=8, alpha=0.3, color="#4878a8", linewidths=0)
    low, high = min(true), max(true)
    axes.plot([low, high], [low, high], color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("score")
    axes.set_ylabel("predicted score")
    axes.spines[["top", "right"]].set_visible(False)


def _confusion(axes: Any, predicted: list[str], true: list[str], names: tuple[str, ...]) -> None:
    ids = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, ([ids[name] for name in true], [ids[name] for name in predicted]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names, rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if len(names) <= 10:  # more figures than that are not readable
        for (i, j), count in np.ndenumerate(counts):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{count:,}\n{shares[i, j]:.0%}", ha="center", va="center", color=colour)
