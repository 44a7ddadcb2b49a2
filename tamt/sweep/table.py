"""The tables of a study: every result in one CSV file, and means over seeds to look at."""

import csv
import io
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tamt.finetuning.rates import best_over_runs, rates_in_words
from tamt.methods import is_one_shot
from tamt.sweep.plan import StudyPlan, Subnetwork
from tamt.sweep.study import AMOUNT, VARIANTS

TABLE = "results.csv"
SETTINGS = (
    "model",
    "method",
    *AMOUNT,
    *VARIANTS,
    "steps",
    "mask_seed",
    "step",
    "task",
    "train_samples",
    "lr",
    "seed",
    "mask_precision",
    "precision",
)
TIMES = ("batch_size", "tokens", "threads", "fastest", "fastest_ms", "megabytes")
LOSSES = ("kd_loss", "mlm_loss")
FIGURES = (*LOSSES, "metric", "score", "best_step", "final_score")

Rows = Mapping[str, list[dict]]
"""The results of the finished runs by the path of the run."""


def table(plan: StudyPlan, rows: Rows) -> list[dict[str, Any]]:
    """One row for each subnetwork that is measured, with its losses; one for each fine-tuning, with its score; and one
    for each time that is measured.

    Settings are those of the study: `steps` the schedule of the search, empty for the paper's; `step` where the mask
    was taken, empty for the end; `train_samples` empty for all; `lr` empty for the default. `precision` is what the run
    of the row computed in, and `mask_precision` what the training that found its mask did, empty for one-shot methods.
    Paths are relative to the folder of the study.
    """
    found = []
    for subnetwork in plan.subnetworks:
        path = subnetwork.evaluation or subnetwork.search
        row = _mask_row(subnetwork, rows)
        if row is not None:
            labels = subnetwork.labels | _precisions(subnetwork.labels, subnetwork.search, row, rows)
            figures = {key: row.get(key) for key in ("kd_loss", "mlm_loss", "seconds")}
            mask = f"{subnetwork.search}/{subnetwork.file}" if subnetwork.search else None
            found.append({"kind": "mask", "run": path, **labels, **figures, "mask": mask})
    for run in plan.runs:
        if run.kind == "bench" and run.path in rows:
            for row in rows[run.path]:
                labels = run.labels | _precisions(run.labels, run.needs, row, rows)
                figures = {key: row.get(key) for key in TIMES}
                found.append({"kind": "bench", "run": run.path, **labels, **figures})
        if run.kind == "finetune" and run.path in rows:
            row = rows[run.path][-1]
            labels = run.labels | _precisions(run.labels, run.needs, row, rows)
            figures = {key: row.get(key) for key in (*FIGURES, "seconds")}
            dev = {f"dev_{name}": value for name, value in (row.get("dev") or {}).items()}
            found.append({"kind": "finetune", "run": run.path, **labels, **figures, **dev})
    return found


def _precisions(labels: Mapping[str, Any], search: str | None, row: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """The precision of a row's run, and that of the training that found its mask, if one did."""
    trained = search is not None and search in rows and not is_one_shot(labels["method"])
    found = rows[search][-1].get("precision") if search is not None and trained else None
    return {"mask_precision": found, "precision": row.get("precision")}


def other_rows(file: Path, plan: StudyPlan) -> list[dict[str, Any]]:
    """The rows in the table of a folder about runs that a plan has not, those of another study, and that are there."""
    if not file.is_file():
        return []
    planned = {run.path for run in plan.runs}
    with file.open(encoding="utf-8", errors="replace", newline="") as text:
        rows = list(csv.DictReader(text))
    others = [row for row in rows if row.get("run") and row["run"] not in planned]
    return [row for row in others if None not in row and (file.parent / row["run"]).is_dir()]


def write_table(found: list[dict[str, Any]]) -> str:
    """The rows of `table` as CSV."""
    dev = sorted({key for row in found for key in row if key.startswith("dev_")})
    text = io.StringIO()
    times = TIMES if any(row.get("kind") == "bench" for row in found) else ()
    columns = ["kind", "run", *SETTINGS, *FIGURES, *dev, *times, "seconds", "mask"]
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in found)
    return text.getvalue()


KEYS = ("model", "method", *AMOUNT, *VARIANTS, "steps", "step", "mask_precision")
"""What tells one kind of subnetwork from another; its masks differ by seed."""


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds of masks and fine-tunings: a row for each kind of subnetwork, a column for each task.

    Scores stand as mean ± standard deviation (number of runs). Where masks were fine-tuned at several learning
    rates the scores are those of the best one, see `best_over_runs`, and the column names the rates: masks that were
    given other rates have another column. Precisions stand apart too: a mask's is a column, and where losses or scores
    were computed in several, the column names theirs.
    """
    found = _named_by_precision(found)
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in found:
        figures = groups.setdefault(tuple(row.get(key) for key in KEYS), {})
        for name in LOSSES if row["kind"] == "mask" else ():
            if row.get(name) is not None:
                figures.setdefault(f"{name}{row['in']}", []).append(row[name])
    for group, column, scores in _at_best_rates(found):
        groups[group].setdefault(column, []).extend(scores)
    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    return [
        {
            **dict(zip(KEYS, group, strict=True)),
            **{name: _mean(figures.get(name, []), with_spread=not name.startswith(LOSSES)) for name in names},
        }
        for group, figures in groups.items()
    ]


def _named_by_precision(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `in`, what the names of their columns say of precision: nothing where all of a kind share one."""
    taken: dict[str, set[Any]] = {}
    for row in found:
        taken.setdefault(row["kind"], set()).add(row.get("precision"))
    return [{**row, "in": f" ({row.get('precision')})" if len(taken[row["kind"]]) > 1 else ""} for row in found]


def _at_best_rates(found: list[dict[str, Any]]) -> Iterator[tuple[tuple[Any, ...], str, list[float]]]:
    """For each kind of subnetwork and task: the kind, the name of the column, and the scores at the best rate."""
    masks: dict[tuple[Any, ...], dict[float | None, dict[int, float | None]]] = {}
    for row in found:
        if row["kind"] == "finetune":
            samples = f" n={row['train_samples']}" if row["train_samples"] else ""
            whose = (tuple(row.get(key) for key in KEYS), row.get("mask_seed"), f"{row['task']}{samples}{row['in']}")
            masks.setdefault(whose, {}).setdefault(row["lr"], {})[row["seed"]] = row["score"]
    lists: dict[str, set[tuple[float | None, ...]]] = {}
    together: dict[tuple[Any, ...], dict[float | None, dict[tuple[Any, int], float | None]]] = {}
    for (group, mask_seed, column), by_rate in masks.items():
        rates = tuple(sorted(by_rate, key=lambda rate: (rate is not None, rate)))
        lists.setdefault(column, set()).add(rates)
        of_group = together.setdefault((group, column, rates), {rate: {} for rate in rates})
        for rate, by_seed in by_rate.items():
            of_group[rate] |= {(mask_seed, seed): score for seed, score in by_seed.items()}
    for (group, column, rates), by_run in together.items():
        rate, runs = best_over_runs(by_run)
        plain = lists[column] == {rates} and len(rates) == 1
        defined = [score for run in runs if (score := by_run[rate][run]) is not None]
        yield group, column if plain else f"{column} ({rates_in_words(rates)})", defined


def _mean(values: list[float], with_spread: bool) -> str | float | None:
    if not values:
        return None
    if not with_spread:
        return round(statistics.mean(values), 6) + 0.0  # the full model's KD loss is -1e-8 by rounding
    spread = f" ± {statistics.stdev(values):.4f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _mask_row(subnetwork: Subnetwork, rows: Rows) -> dict | None:
    """What was measured of a subnetwork's mask: by its evaluation, or in the row of its search that has its file."""
    if subnetwork.evaluation is not None:
        return rows[subnetwork.evaluation][-1] if subnetwork.evaluation in rows else None
    if subnetwork.search is None or subnetwork.search not in rows:
        return None
    named = [row for row in rows[subnetwork.search] if Path(row["mask"]).name == Path(str(subnetwork.file)).name]
    return named[-1] if named else None
