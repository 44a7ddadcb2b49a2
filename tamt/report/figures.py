"""The figures of the paper that compare subnetworks: by sparsity, loss, training samples and model."""

from collections.abc import Sequence

from tamt.methods import OMP, RANDOM
from tamt.report.figure import Chart, Figure, Missing, Point, Series
from tamt.report.latency_figure import by_latency
from tamt.report.numbers import percent
from tamt.report.results import FineTuningRecord, Results
from tamt.report.scores import (
    AVERAGE,
    LOSSES,
    Scores,
    label_of,
    main_tickets,
    mask_count,
    other_lengths,
    scatter,
    series_of,
    suffixes,
)
from tamt.report.search_figures import along_the_search, by_start, by_steps
from tamt.report.statistics import FEWEST_MASKS, summarise


def figures_of(results: Results) -> list[Figure | Missing]:
    """All figures of the paper and more, or `Missing` for those that lack runs."""
    found: list[Figure | Missing] = []
    for model, suffix in suffixes(results.models).items():
        scores = Scores(results, model)
        for define in (
            omp_and_random,
            by_sparsity,
            by_loss,
            by_steps,
            by_start,
            by_samples,
            along_the_search,
            by_latency,
        ):
            figure = define(results, model, scores)
            if isinstance(figure, Figure):
                title = f"{figure.title} ({model})" if suffix else figure.title
                figure = Figure(figure.name + suffix, title, figure.paper, figure.caption, figure.panels)
            elif suffix:
                figure = Missing(f"{figure.title} ({model})", figure.paper, figure.needs)
            found.append(figure)
    found.append(between_models(results))
    return found


def omp_and_random(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 1 and 10: score, MLM and KD loss of OMP and random subnetworks against sparsity, and the gap in score."""
    paper, title = "Fig. 1, 10", "Magnitude pruning and random subnetworks"
    tickets = {key: value for key, value in main_tickets(results, model).items() if key[0] in (OMP, RANDOM)}
    panels = [_against_sparsity(scores, task, tickets) for task in scores.panels[:1]]
    panels += [chart for loss in LOSSES if (chart := _loss_against_sparsity(results, model, loss, tickets)).series]
    panels += [_against_sparsity(scores, task, tickets) for task in scores.panels[1:]]
    with_gap = tuple(_with_gap(chart) for chart in panels if chart.series)
    if {method for method, _ in tickets} != {OMP, RANDOM} or not with_gap:
        return Missing(
            title, paper, "searches by --method omp and rand at the same sparsities, and fine-tunings of their masks"
        )
    caption = "Dashed: OMP minus random. Marks are means; bands are one standard deviation."
    return Figure("fig-01-omp-and-random", title, paper, caption, with_gap)


def _with_gap(chart: Chart) -> Chart:
    points = {series.label: {point.x: point for point in series.points} for series in chart.series}
    omp, random = points.get(label_of(OMP), {}), points.get(label_of(RANDOM), {})
    shared = sorted(omp.keys() & random.keys())
    if not shared or chart.y_label in LOSSES.values():
        return chart
    gap = tuple(Point(x, omp[x].y - random[x].y, about="difference of the means") for x in shared)
    series = (*chart.series, Series("OMP − random", "gap", gap, dashed=True))
    return Chart(chart.title, chart.x_label, chart.y_label, series, chart.reference)


def by_sparsity(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 3 and 4: score against sparsity for every method, the average and each task."""
    paper, title = "Fig. 3, 4", "Score against sparsity"
    tickets = main_tickets(results, model)
    panels = [chart for task in scores.panels if (chart := _against_sparsity(scores, task, tickets)).series]
    if not panels:
        return Missing(title, paper, "fine-tunings of masks, ideally at several sparsities with several seeds")
    caption = (
        f"Marks are means over all runs (mask seeds × fine-tuning seeds); bands are one standard deviation. "
        f"{_trained_on(scores)} {other_lengths(results, model)}"
    )
    return Figure("fig-03-score-by-sparsity", title, paper, caption.strip(), tuple(panels))


def by_loss(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 5, 12 and 13: score against MLM and KD dev loss; each mark is a mask, each panel a sparsity."""
    paper, title = "Fig. 5, 12, 13", "Score against pre-training loss"
    tickets = [t for t in results.tickets if t.model == model]
    sparsities = sorted({t.sparsity for t in tickets})
    panels = []
    for task in scores.panels:
        for loss, x_label in LOSSES.items():
            for sparsity in sparsities:
                chosen = [t for t in tickets if t.sparsity == sparsity and getattr(t, loss) is not None]
                series = scatter([(t, getattr(t, loss)) for t in chosen], scores, task)
                if len(series) > 1 or sum(len(s.points) for s in series) >= FEWEST_MASKS:
                    name = f"{task}, {percent(sparsity)} sparsity"
                    panels.append(Chart(name, x_label, scores.label(task), series, scores.full(task)))
    if not panels:
        return Missing(title, paper, "fine-tunings of several masks at one sparsity, with dev losses (--dev-corpus)")
    caption = (
        "Each mark is one mask; its score is the mean of its fine-tunings. Mask training includes masks saved along "
        "the search, which are not independent."
    )
    return Figure("fig-05-score-by-loss", title, paper, caption, tuple(panels))


def by_samples(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 9: score against the number of training samples, on a logarithmic axis."""
    paper, title = "Fig. 9", "Score against the number of fine-tuning samples"
    tickets = main_tickets(results, model)
    panels = []
    for task in scores.tasks:
        numbers = sorted({i.train_samples for i in scores.all if i.task == task})
        if len(numbers) < 2:
            continue
        for sparsity in sorted({s for by_sparsity in tickets.values() for s in by_sparsity}):
            series = []
            for key, by_sparsity in tickets.items():
                identities: set[tuple | None] = {t.identity for t in by_sparsity.get(sparsity, [])}
                points = _sample_points(scores.all, task, numbers, identities)
                if len(points) > 1:
                    series.append(series_of(key, points))
            if series:
                full = _sample_points(scores.all, task, numbers, {None})
                series += [Series("full model", "full", full, dashed=True)] if full else []
                name = f"{task}, {percent(sparsity)} sparsity"
                panels.append(Chart(name, "training samples", scores.label(task), tuple(series), log_x=True))
    if not panels:
        return Missing(title, paper, "fine-tunings of a mask with several --train-samples, for example 1000 and all")
    caption = "Marks are means over all runs; bands are one standard deviation. The x axis is logarithmic."
    return Figure("fig-09-score-by-samples", title, paper, caption, tuple(panels))


def _sample_points(
    items: Sequence[FineTuningRecord], task: str, numbers: Sequence[int], wanted: set[tuple | None]
) -> tuple[Point, ...]:
    points = []
    for number in numbers:
        values = [
            100 * i.score for i in items if i.task == task and i.train_samples == number and i.mask_identity in wanted
        ]
        if values:
            points.append(Point.of(number, summarise(values)))
    return tuple(points)


def between_models(results: Results) -> Figure | Missing:
    """Fig. 11: OMP subnetworks of several models against sparsity."""
    paper, title = "Fig. 11", "OMP subnetworks of several models"
    scores = {model: Scores(results, model) for model in results.models}
    tasks = sorted({task for s in scores.values() for task in s.panels})
    panels = []
    for task in [AVERAGE] * (AVERAGE in tasks) + [t for t in tasks if t != AVERAGE]:
        if task == AVERAGE and len({tuple(s.tasks) for s in scores.values()}) > 1:
            continue  # averages over different tasks are not comparable
        series = []
        for number, (model, found) in enumerate(scores.items()):
            if task not in found.panels:
                continue
            tickets = main_tickets(results, model).get((OMP, None), {})
            points = [
                Point.of(100 * sparsity, summary)
                for sparsity, chosen in tickets.items()
                if (summary := found.of(chosen, task))
            ]
            if points and (full := found.full(task)):
                points.insert(0, Point.of(0, full[1], "full model"))
            if points:
                series.append(Series(model, f"model-{number}", tuple(points)))
        if len(series) > 1:
            panels.append(Chart(task, "sparsity (%)", scores[series[0].label].label(task), tuple(series)))
    if not panels:
        return Missing(
            title,
            paper,
            "OMP searches of two models, such as bert-base-uncased and roberta-base, and fine-tunings on the same task",
        )
    caption = "0 % is the full model. Marks are means over all runs; bands are one standard deviation."
    return Figure("fig-11-models", title, paper, caption, tuple(panels))


def _against_sparsity(scores: Scores, task: str, tickets: dict) -> Chart:
    series = []
    for key, by_sparsity in tickets.items():
        points = tuple(
            Point.of(100 * sparsity, summary, mask_count(chosen))
            for sparsity, chosen in by_sparsity.items()
            if (summary := scores.of(chosen, task))
        )
        if points:
            series.append(series_of(key, points))
    return Chart(task, "sparsity (%)", scores.label(task), tuple(series), scores.full(task))


def _loss_against_sparsity(results: Results, model: str, loss: str, tickets: dict) -> Chart:
    series = []
    for key, by_sparsity in tickets.items():
        points = tuple(
            Point.of(100 * sparsity, summarise(values))
            for sparsity, chosen in by_sparsity.items()
            if (values := [value for t in chosen if (value := getattr(t, loss)) is not None])
        )
        if points:
            series.append(series_of(key, points))
    full = results.full_losses.get(model, {}).get(loss)
    reference = ("full model", summarise([full])) if full is not None else None
    return Chart("before fine-tuning", "sparsity (%)", LOSSES[loss], tuple(series), reference)


def _trained_on(scores: Scores) -> str:
    numbers = ", ".join(f"{task} {number:,}" for task, number in scores.samples.items())
    return f"Training samples: {numbers}."
