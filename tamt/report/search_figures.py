"""The figures about searches: steps, time, initial mask, and losses along the way."""

from collections.abc import Callable

from tamt.methods import IMP, METHODS, OMP
from tamt.report.figure import Chart, Figure, Missing, Point, Series
from tamt.report.numbers import percent
from tamt.report.results import Results, TicketRecord
from tamt.report.scores import (
    LOSSES,
    MethodVariant,
    Scores,
    main_tickets,
    mask_count,
    order_of,
    series_of,
)
from tamt.report.statistics import summarise
from tamt.report.variants import not_at_random, starts_at_random


def by_steps(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 6 and 14-16: score against steps and time of the search."""
    paper, title = "Fig. 6, 14-16", "Score against the cost of the search"
    panels = [
        chart
        for task in scores.panels
        for sparsity in sorted({t.sparsity for t in results.tickets if t.model == model})
        for chart in _cost_charts(results, scores, task, sparsity, lambda key: not starts_at_random(key[1]))
    ]
    if not panels:
        return Missing(
            title,
            paper,
            "fine-tunings of masks saved along a search (tamt train --save-at), and of IMP with several --steps",
        )
    caption = (
        "Masks of mask training are saved along one search; those of IMP come from searches with different pruning "
        "intervals, as in the paper. Time includes dev evaluations and a head warm-up, on the machine of the runs."
    )
    return Figure("fig-06-score-by-steps", title, paper, caption, tuple(panels))


def by_start(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 7: mask training from OMP and from a random mask."""
    paper, title = "Fig. 7", "Mask training from OMP and from a random mask"
    tickets = [t for t in results.tickets if t.model == model]
    random = [t for t in tickets if starts_at_random(t.variant)]
    both = {(t.method, not_at_random(t.variant)) for t in random} & {(t.method, t.variant) for t in tickets}

    def paired(key: MethodVariant) -> bool:
        return (key[0], not_at_random(key[1])) in both

    panels = [
        chart
        for task in scores.panels
        for sparsity in sorted({t.sparsity for t in random})
        for chart in _cost_charts(results, scores, task, sparsity, paired, least=1, time=False)
    ]
    if not both or not panels:
        return Missing(
            title, paper, "the same searches with --initial random and --initial omp, and fine-tunings of both"
        )
    caption = "Hollow marks and dashed lines: the search starts from a random mask of the same sparsity."
    return Figure("fig-07-start", title, paper, caption, tuple(panels))


def _cost_charts(
    results: Results,
    scores: Scores,
    task: str,
    sparsity: float,
    wanted: Callable[[MethodVariant], bool],
    least: int = 2,
    time: bool = True,
) -> list[Chart]:
    """Score against steps, and against minutes, of the searches at a sparsity; none unless one has `least` points."""
    by_steps: list[Series] = []
    by_time: list[Series] = []
    for key, by_step in _by_step(results, scores.model, sparsity, wanted):
        after_steps, after_minutes = [], []
        for step, tickets in by_step:
            if summary := scores.of(tickets, task):
                after_steps.append(Point.of(step, summary, mask_count(tickets)))
                seconds = [t.seconds for t in tickets if t.seconds is not None]
                if len(seconds) == len(tickets):
                    minutes = sum(seconds) / len(seconds) / 60
                    after_minutes.append(Point.of(minutes, summary, f"after {step:,} steps"))
        by_steps += [series_of(key, tuple(after_steps))] if after_steps else []
        by_time += [series_of(key, tuple(after_minutes))] if after_minutes else []
    if not any(len(series.points) >= least for series in by_steps):
        return []
    omp = scores.of(main_tickets(results, scores.model).get((OMP, None), {}).get(sparsity, []), task)
    start = (Series(METHODS[OMP].label, OMP, (Point.of(0, omp, "no search"),)),) if omp else ()
    title, y_label, full = f"{task}, {percent(sparsity)} sparsity", scores.label(task), scores.full(task)
    charts = [Chart(title, "search steps", y_label, (*start, *by_steps), full)]
    if time and by_time:
        charts.append(Chart(title, "search time (min)", y_label, (*start, *by_time), full))
    return charts


def _by_step(
    results: Results, model: str, sparsity: float, wanted: Callable[[MethodVariant], bool]
) -> list[tuple[MethodVariant, list[tuple[int, list[TicketRecord]]]]]:
    """The masks of each method that trains, by the step after which they were saved."""
    tickets = [
        t
        for t in results.tickets
        if t.model == model and t.sparsity == sparsity and t.steps and wanted((t.method, t.variant))
    ]
    longest: dict[MethodVariant, int] = {}
    for t in tickets:
        longest[t.method, t.variant] = max(t.steps, longest.get((t.method, t.variant), 0))
    by_step: dict[MethodVariant, dict[tuple[int, int], list[TicketRecord]]] = {}
    for t in tickets:
        # Masks saved along shorter searches saw another learning rate; for IMP the length is what the axis shows.
        if t.method == IMP or t.steps == longest[t.method, t.variant]:
            by_step.setdefault((t.method, t.variant), {}).setdefault((t.step, t.steps), []).append(t)
    return [
        (key, [(step, chosen) for (step, _), chosen in sorted(steps.items())])
        for key, steps in sorted(by_step.items(), key=lambda item: order_of(item[0]))
    ]


def along_the_search(results: Results, model: str, _: Scores) -> Figure | Missing:
    """Dev losses, and the share of the mask that changed, along the searches."""
    title = "Pre-training loss during the search"
    names = {**{f"dev_{key}": label for key, label in LOSSES.items()}, "changed": "mask entries changed (%)"}
    panels = []
    for sparsity in sorted({c.ticket.sparsity for c in results.curves if c.ticket.model == model}):
        for name, y_label in names.items():
            gathered: dict[tuple, dict[int, list[float]]] = {}
            for curve in results.curves:
                ticket = curve.ticket
                if ticket.model != model or ticket.sparsity != sparsity:
                    continue
                key = (ticket.method, ticket.variant, ticket.steps)
                for step, _seconds, values in curve.points:
                    if name in values and not (ticket.method == IMP and name == "changed"):
                        factor = 100 if name == "changed" else 1
                        gathered.setdefault(key, {}).setdefault(step, []).append(factor * values[name])
            drawn = [key[:2] for key, by_step in gathered.items() if len(by_step) > 1]
            series = tuple(
                series_of(
                    key[:2],
                    tuple(Point.of(step, summarise(values)) for step, values in _thinned(sorted(by_step.items()))),
                    f", {key[2]:,} steps" if drawn.count(key[:2]) > 1 else "",
                )
                for key, by_step in sorted(gathered.items(), key=lambda item: (order_of(item[0][:2]), item[0][2]))
                if len(by_step) > 1
            )
            if series:
                panels.append(Chart(f"{percent(sparsity)} sparsity", "search steps", y_label, series))
    if not panels:
        return Missing(title, "of its own", "searches with dev text (--dev-corpus) and --eval-every")
    caption = "Means over mask seeds. The loss of IMP falls while its weights train, and rises at every pruning."
    return Figure("search-losses", title, "not in the paper", caption, tuple(panels))


def _thinned(items: list, most: int = 40) -> list:
    """About `most` items or fewer, evenly spaced; always the last one."""
    every = -(-len(items) // most)
    return items[::-every][::-1]
