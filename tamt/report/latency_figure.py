"""Score against the time of a forward pass, and the Pareto front of both."""

from collections.abc import Iterable, Sequence

from tamt.methods import FULL
from tamt.report.figure import Chart, Figure, Missing, Point, Series
from tamt.report.results import LatencyRecord, Results
from tamt.report.scores import Scores, about_ticket, scatter
from tamt.report.style import FRONT


def by_latency(results: Results, model: str, scores: Scores) -> Figure | Missing:
    """Score against the milliseconds of a forward pass: every mask, the full model, and the Pareto front."""
    title, paper = "Score against time", "not in the paper"
    measured = [latency for latency in results.latencies if latency.model == model]
    panels = []
    for task in scores.panels:
        for setting in dict.fromkeys(latency.setting for latency in measured):
            series = _series([latency for latency in measured if latency.setting == setting], scores, task)
            if sum(len(each.points) for each in series) > 1:
                front = Series("Pareto front", FRONT, pareto_front(series), dashed=True)
                label = f"ms per forward pass ({setting})"
                panels.append(Chart(task, label, scores.label(task), (front, *series)))
    if not panels:
        return Missing(title, paper, "fine-tunings and, in a study, the key bench, which measures time")
    caption = (
        "Each mark is one mask at its fastest way to run on a CPU; its score is the mean of its fine-tunings. Nothing "
        "measured is both faster and better than what the dashed line joins."
    )
    return Figure("score-by-time", title, paper, caption, tuple(panels))


def _series(measured: Sequence[LatencyRecord], scores: Scores, task: str) -> tuple[Series, ...]:
    """The marks of masks by method, and that of the full model."""
    of_ticket = {latency.ticket: latency for latency in measured if latency.ticket}
    series = scatter(
        [(ticket, latency.milliseconds) for ticket, latency in of_ticket.items()],
        scores,
        task,
        lambda ticket: ", ".join(part for part in (about_ticket(ticket), _about(of_ticket[ticket])) if part),
    )
    full = next((latency for latency in measured if latency.ticket is None), None)
    if full and (summary := scores.full(task)):
        point = Point.of(full.milliseconds, summary[1], _about(full))
        series += (Series(summary[0], FULL, (point,), line=False),)
    return series


def _about(latency: LatencyRecord) -> str:
    return f"{latency.way}, {latency.megabytes:.1f} MB"


def pareto_front(series: Iterable[Series]) -> tuple[Point, ...]:
    """The points that no other one beats, from the fastest to the best: each is slower and better than the last."""
    front: list[Point] = []
    points = [point for each in series for point in each.points]
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(Point(point.x, point.y))
    return tuple(front)
