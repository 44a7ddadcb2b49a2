"""A study of four short searches on a tiny model, and the table that a sweep writes."""

import csv
from pathlib import Path

import yaml


def searches(folder: Path, model: Path, text: Path) -> Path:
    """Write the study into a folder; returns its file."""
    content = {
        "models": str(model),
        "methods": ["tamt-kd", "omp"],
        "sparsities": [0.3, 0.5],
        "corpus": str(text),
        "dev_corpus": str(text),
        "search": {"max_length": 16, "batch_size": 2, "steps": 4, "save_at": [2], "eval_blocks": 2},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


def table(output: Path) -> list[dict[str, str]]:
    """The rows of results.csv, without the seconds, in which two sweeps differ."""
    with (output / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def workers(output: Path) -> set[int]:
    """The processes that wrote the metrics of a study."""
    return {int(path.name.split(".")[-2]) for path in output.rglob("events.out.tfevents.*")}
