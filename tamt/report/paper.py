"""Figures of the paper (Liu et al., NAACL 2022) beside those of a study."""

from tamt.finetuning.rates import RATE_OF_BASE, RISE_BY_SPARSITY, WIDTH_OF_BASE
from tamt.methods import IMP, METHODS, RANDOM, is_one_shot, trains_scores
from tamt.report.comparable import EFFECTIVE_BATCH
from tamt.report.figure import Chart, Figure
from tamt.report.masks import MaskGroup
from tamt.report.numbers import percent
from tamt.report.results import Results
from tamt.report.scores import Scores, label_of, main_tickets
from tamt.report.statistics import summarise
from tamt.report.tables import Cell, Table
from tamt.report.variants import RANDOM_START, not_at_random, starts_at_random

SPEED_UP = {"search steps": "8.4 ×", "search time (min)": "8.7 ×"}
"""How much faster TAMT reaches IMP's best score at 70 % (4.2.3)."""
SIMILARITY = {60: "0.75", 80: "less than 0.6"}
"""Similarity of masks by TAMT-MLM and IMP, by sparsity in percent (A.5)."""
SETTINGS_OF_SEARCHES = {
    EFFECTIVE_BATCH: "16",
    "max_length": "512",
    "lr": "5e-5, 2e-5 for TAMT-KD",
    "corpus": "wikitext-103",
}
SETTINGS_OF_TASKS = {
    "epochs": "3, 2 for squad",
    EFFECTIVE_BATCH: "32, 16 for squad",
    "max_length": "128, 384 for squad",
    "lr": "2e-5, 3e-5 for squad",
    "eval_every": "50, 500 for mnli, 1000 for squad",
}
"""Settings of the paper (Table 1)."""


def paper_table(results: Results, groups: list[MaskGroup], figures: list[Figure]) -> Table:
    """The figures of the paper for which the study has runs, beside its own."""
    rows: list[tuple[Cell, ...]] = []
    for figure in figures:
        if figure.paper.startswith("Fig. 6"):
            for panel in figure.panels:
                if isinstance(panel, Chart):
                    rows += _speed_ups(panel, results.models if len(results.models) == 1 else [figure.title])
    for model in results.models:
        rows += _shares_of_full(results, model)
        rows += _costs(results, model)
        rows += _starts(results, model)
    for group in groups:
        rows += _similarities(group)
    note = (
        "Figures of Liu et al. (NAACL 2022) and of these runs. They are comparable only if model, text, steps and "
        "tasks are those of the paper; otherwise they show whether the same trend appears on a smaller scale."
    )
    return Table("paper", "Comparison with the paper", note, ("model", "quantity", "paper", "here", "source"), rows)


def _speed_ups(chart: Chart, models: list[str]) -> list[tuple[Cell, ...]]:
    """How much faster mask training reaches IMP's best score in a chart."""
    imp = next((series for series in chart.series if series.style == IMP), None)
    if imp is None:
        return []
    best = max(imp.points, key=lambda point: point.y)
    rows: list[tuple[Cell, ...]] = []
    for series in chart.series:
        if trains_scores(series.style) and RANDOM_START not in series.label:
            first = min((point.x for point in series.points if point.y >= best.y), default=None)
            here = "not reached"
            if first is not None and first > 0:
                here = f"{best.x / first:.1f} × ({best.x:,.4g} / {first:,.4g})"
            what = f"{chart.x_label}: {series.label} faster than IMP to IMP's best score, {chart.title}"
            paper = SPEED_UP[chart.x_label] if percent(0.7) in chart.title and "average" in chart.title else "—"
            rows.append((models[0], what, paper, here, "4.2.3, Fig. 6"))
    return rows


def _shares_of_full(results: Results, model: str) -> list[tuple[Cell, ...]]:
    scores = Scores(results, model)
    if not scores.panels or (full := scores.full(scores.panels[0])) is None or full[1].mean <= 0:
        return []
    bound = 30 if "roberta" in model.lower() else 50
    rows: list[tuple[Cell, ...]] = []
    for key, by_sparsity in main_tickets(results, model).items():
        for sparsity, tickets in by_sparsity.items():
            whole = round(100 * sparsity)
            found = scores.of(tickets, scores.panels[0])
            if found is None or whole not in (bound, 90):
                continue
            paper = "about half" if whole == 90 else "below 90 %" if key[0] == RANDOM else "90 % or more"
            what = f"score of {label_of(*key)} at {whole} % sparsity, share of the full model's"
            rows.append((model, what, paper, percent(round(found.mean / full[1].mean, 2)), "4.2.1"))
    return rows


def _costs(results: Results, model: str) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for (method, variant), by_sparsity in main_tickets(results, model).items():
        if method not in METHODS or is_one_shot(method) or starts_at_random(variant):
            continue
        published = METHODS[method]
        steps = published.paper_steps
        rates = [t.seconds_per_step for tickets in by_sparsity.values() for t in tickets if t.seconds_per_step]
        if rates:
            seconds = next((value for name, value in published.paper_seconds.items() if name in model.lower()), None)
            paper = f"{seconds / max(steps.values()):.2f} (V100)" if seconds and steps else "—"
            what = f"seconds per step of {label_of(method, variant)}, without head warm-up"
            rows.append((model, what, paper, f"{summarise(rates).mean:.3g}", "Table 3"))
        for sparsity, tickets in by_sparsity.items():
            found = sorted({t.step for t in tickets})
            if (whole := round(100 * sparsity)) in steps and tickets[0].steps:
                what = f"steps of {label_of(method, variant)} to its mask at {whole} % sparsity"
                rows.append((model, what, f"{steps[whole]:,}", " and ".join(f"{n:,}" for n in found), "Table 2"))
    return rows


def _starts(results: Results, model: str) -> list[tuple[Cell, ...]]:
    scores = Scores(results, model)
    found = main_tickets(results, model)
    rows: list[tuple[Cell, ...]] = []
    for (method, variant), by_sparsity in found.items():
        if not starts_at_random(variant) or not scores.panels:
            continue
        from_omp = (method, not_at_random(variant))
        for sparsity, tickets in by_sparsity.items():
            random = scores.of(tickets, scores.panels[0])
            omp = scores.of(found.get(from_omp, {}).get(sparsity, []), scores.panels[0])
            if random and omp:
                name = label_of(*from_omp)
                what = f"score × 100 of {name} from OMP minus from a random mask, {percent(sparsity)} sparsity"
                rows.append((model, what, "clearly above 0", f"{omp.mean - random.mean:.1f}", "4.2.4, Fig. 7"))
    return rows


def _similarities(group: MaskGroup) -> list[tuple[Cell, ...]]:
    names = [label.split(" ")[0] if "random" not in label else "" for label in group.labels]
    values = [
        group.similarities[i][j]
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if (first, second) == (METHODS["tamt-mlm"].label, METHODS[IMP].label)
    ]
    if not values:
        return []
    paper = SIMILARITY.get(round(100 * group.sparsity), "—")
    what = f"Jaccard similarity of TAMT-MLM and IMP at {percent(group.sparsity)} sparsity"
    return [(group.model, what, paper, f"{summarise(values).mean:.2f}", "A.5, Fig. 17")]


def settings_table(results: Results) -> Table:
    """The settings of the runs beside the paper's Table 1, without defaults."""
    rows: list[tuple[Cell, ...]] = []
    for model, name, variant, key, value in results.settings:
        searching = name in METHODS
        paper = (SETTINGS_OF_SEARCHES if searching else SETTINGS_OF_TASKS).get(key, "—")
        rows.append((model, label_of(name, variant) if searching else name, key, value, paper))
    note = (
        "The settings of the runs. Defaults are those of the paper, with four exceptions: scores, dropout and "
        "learning rate of mask training without --recipe paper; the learning rate of fine-tuning without it, "
        f"{RATE_OF_BASE:g} · {WIDTH_OF_BASE} / width · (1 + {RISE_BY_SPARSITY:g} · sparsity); "
        "regressions, which start at the mean of the train labels without it; and tasks that are not in the paper."
    )
    return Table("settings", "Settings", note, ("model", "method or task", "setting", "here", "paper"), rows)
