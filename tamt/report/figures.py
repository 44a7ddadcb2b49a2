"""What every figure shows: one definition that the page, the PNG, the PDF and the CSV are drawn from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tamt.methods import IMP, METHODS, OMP, PUBLISHED, RANDOM
from tamt.report.runs import FineTuning, Study, Ticket
from tamt.report.statistics import Summary, summarise
from tamt.report.variants import is_unusual, not_at_random, starts_at_random
from tamt.runtime.names import distinct

LABELS = {**{method.name: method.label for method in METHODS.values()}, PUBLISHED: "published mask"}
"""How methods are called, in the order in which they are shown."""
LOSSES = {"mlm_loss": "MLM dev loss (nats)", "kd_loss": "KD dev loss"}
AVERAGE = "average"


class Point(NamedTuple):
    """A mark: the mean of `runs` runs at x, with their standard deviation, None for one; and more words about it."""

    x: float
    y: float
    spread: float | None = None
    runs: int = 1
    about: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour. `style` names it: a method, or `model-0`, `model-1`, … where models are compared."""

    label: str
    style: str
    points: tuple[Point, ...]
    line: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One panel of points and lines. `reference` is a horizontal line with a label, the full model."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    reference: tuple[str, Summary] | None = None
    log_x: bool = False


@dataclass(frozen=True)
class HeatMap:
    """One panel of coloured cells: values[row][column] from `low` to `high`, None left empty."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A figure of a report: `name` is that of its files, `paper` the figure of the paper that it repeats."""

    name: str
    title: str
    paper: str
    caption: str
    panels: tuple[Chart | HeatMap, ...]


@dataclass(frozen=True)
class Missing:
    """A figure for which there are no runs, and what runs it needs."""

    title: str
    paper: str
    needs: str


class Scores:
    """The scores of a model, those that can be averaged together: each task's largest number of training samples."""

    def __init__(self, study: Study, model: str) -> None:
        self.all = [item for item in study.fine_tunings if item.model == model]
        self.tasks = sorted({item.task for item in self.all})
        self.samples = {task: max(i.train_samples for i in self.all if i.task == task) for task in self.tasks}
        self.metrics = {item.task: item.metric for item in self.all}
        self._main: dict[tuple | None, list[FineTuning]] = {}
        for item in self.all:
            if item.train_samples == self.samples[item.task]:
                self._main.setdefault(item.ticket.identity if item.ticket else None, []).append(item)

    @property
    def panels(self) -> list[str]:
        """The tasks, after their average if there are several."""
        return [AVERAGE, *self.tasks] if len(self.tasks) > 1 else self.tasks

    def runs(self, ticket: Ticket | None, task: str) -> dict[int, float]:
        """The scores of a ticket, or of the full model, on a task by the fine-tuning's seed, times 100.

        An average is over all tasks of the model; a seed that lacks one of them has none.
        """
        found = self._main.get(ticket.identity if ticket else None, [])
        by_task = {name: {i.seed: 100 * i.score for i in found if i.task == name} for name in self.tasks}
        if task != AVERAGE:
            return by_task[task]
        seeds = set.intersection(*(set(scores) for scores in by_task.values())) if by_task else set()
        return {seed: sum(scores[seed] for scores in by_task.values()) / len(by_task) for seed in sorted(seeds)}

    def of(self, tickets: Iterable[Ticket], task: str) -> Summary | None:
        """Mean and spread over all fine-tunings of some tickets, None if there are none."""
        values = [score for ticket in tickets for score in self.runs(ticket, task).values()]
        return summarise(values) if values else None

    def full(self, task: str) -> tuple[str, Summary] | None:
        """The line of the full model, None if it was not fine-tuned."""
        values = self.runs(None, task)
        return ("full model", summarise(list(values.values()))) if values else None

    def label(self, task: str) -> str:
        """The axis of a task's score."""
        if task == AVERAGE:
            return "average score (× 100)"
        metric = self.metrics[task]
        unit = {"matthews": "Matthews corr.", "pearson": "Pearson corr.", "f1": "F1"}.get(metric, metric)
        return f"{unit} (× 100)"


def label_of(method: str, variant: str | None = None) -> str:
    """A method's name for people, with the variant of its search."""
    name = LABELS.get(method, method)
    return f"{name}, {variant}" if variant else name


def order_of(key: tuple[str, str | None]) -> tuple:
    """To sort (method, variant) by."""
    return ([*LABELS].index(key[0]) if key[0] in LABELS else len(LABELS), key[0], key[1] or "")


def main_tickets(study: Study, model: str) -> dict[tuple[str, str | None], dict[float, list[Ticket]]]:
    """The masks that searches were for, by (method, variant) and sparsity; of several lengths of search the longest."""
    found: dict[tuple[str, str | None], dict[float, list[Ticket]]] = {}
    for ticket in study.tickets:
        if ticket.model == model and ticket.final:
            found.setdefault((ticket.method, ticket.variant), {}).setdefault(ticket.sparsity, []).append(ticket)
    return {
        key: {
            sparsity: [t for t in tickets if t.steps == max(other.steps for other in tickets)]
            for sparsity, tickets in sorted(by_sparsity.items())
        }
        for key, by_sparsity in sorted(found.items(), key=lambda item: order_of(item[0]))
    }


def short_searches(study: Study, model: str) -> str:
    """A sentence on searches of several lengths of which only the longest are averaged; empty if there are none."""
    lengths: dict[tuple[str, str | None, float], set[int]] = {}
    for ticket in study.tickets:
        if ticket.model == model and ticket.final and ticket.steps:
            lengths.setdefault((ticket.method, ticket.variant, ticket.sparsity), set()).add(ticket.steps)
    several = [
        f"{label_of(method, variant)} at {sparsity:.0%} {max(steps):,}, not {', '.join(map(str, sorted(steps)[:-1]))}"
        for (method, variant, sparsity), steps in sorted(lengths.items(), key=lambda item: order_of(item[0][:2]))
        if len(steps) > 1
    ]
    return f"Of searches of several lengths the longest is shown, in steps: {'; '.join(several)}." if several else ""


def figures_of(study: Study) -> list[Figure | Missing]:
    """Every figure of the paper that the study has the runs for, and what is missing for the others."""
    found: list[Figure | Missing] = []
    for model, suffix in suffixes(study.models).items():
        scores = Scores(study, model)
        for define in (omp_and_random, by_sparsity, by_loss, by_steps, by_start, by_samples, along_the_search):
            figure = define(study, model, scores)
            if isinstance(figure, Figure):
                title = f"{figure.title} ({model})" if suffix else figure.title
                figure = Figure(figure.name + suffix, title, figure.paper, figure.caption, figure.panels)
            elif suffix:
                figure = Missing(f"{figure.title} ({model})", figure.paper, figure.needs)
            found.append(figure)
    found.append(between_models(study))
    return found


def omp_and_random(study: Study, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 1 and 10: score, MLM and KD loss of OMP and random subnetworks against sparsity, and the scores' gap."""
    paper, title = "Fig. 1, 10", "Magnitude pruning against random subnetworks"
    tickets = {key: value for key, value in main_tickets(study, model).items() if key[0] in (OMP, RANDOM)}
    panels = [_against_sparsity(scores, task, tickets) for task in scores.panels[:1]]
    panels += [chart for loss in LOSSES if (chart := _loss_against_sparsity(study, model, loss, tickets)).series]
    panels += [_against_sparsity(scores, task, tickets) for task in scores.panels[1:]]
    with_gap = tuple(_with_gap(chart) for chart in panels if chart.series)
    if len(tickets) < 2 or not with_gap:
        return Missing(
            title, paper, "searches with --method omp and rand at the same sparsities, and fine-tunings of their masks"
        )
    caption = "Dashed: OMP minus random, where both were fine-tuned. Marks are means, bands one standard deviation."
    return Figure("fig-01-omp-and-random", title, paper, caption, with_gap)


def _with_gap(chart: Chart) -> Chart:
    points = {series.style: {point.x: point for point in series.points} for series in chart.series}
    shared = sorted(points.get(OMP, {}).keys() & points.get(RANDOM, {}).keys())
    if not shared or chart.y_label in LOSSES.values():
        return chart
    gap = tuple(Point(x, points[OMP][x].y - points[RANDOM][x].y, about="difference of the means") for x in shared)
    series = (*chart.series, Series("OMP − random", "gap", gap, dashed=True))
    return Chart(chart.title, chart.x_label, chart.y_label, series, chart.reference)


def by_sparsity(study: Study, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 3 and 4: score against sparsity for every method, the average and each task."""
    paper, title = "Fig. 3, 4", "Score against sparsity"
    tickets = main_tickets(study, model)
    panels = [chart for task in scores.panels if (chart := _against_sparsity(scores, task, tickets)).series]
    if not panels:
        return Missing(title, paper, "fine-tunings of masks, best at several sparsities, with several seeds")
    caption = (
        f"Marks are means over all runs (mask seeds × fine-tuning seeds), bands one standard deviation. "
        f"{_trained_on(scores)} {short_searches(study, model)}"
    )
    return Figure("fig-03-score-by-sparsity", title, paper, caption.strip(), tuple(panels))


def by_loss(study: Study, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 5, 12 and 13: score against MLM and KD dev loss, a dot a mask, a panel a sparsity."""
    paper, title = "Fig. 5, 12, 13", "Score against pre-training loss"
    tickets = [t for t in study.tickets if t.model == model]
    sparsities = sorted({t.sparsity for t in tickets})
    panels = []
    for task in scores.panels:
        for loss, x_label in LOSSES.items():
            for sparsity in sparsities:
                chosen = [t for t in tickets if t.sparsity == sparsity and getattr(t, loss) is not None]
                series = scatter([(t, getattr(t, loss)) for t in chosen], scores, task)
                if sum(len(s.points) for s in series) > 1:
                    name = f"{task}, {sparsity:.0%} sparsity"
                    panels.append(Chart(name, x_label, scores.label(task), series, scores.full(task)))
    if not panels:
        return Missing(
            title, paper, "fine-tunings of several masks of one sparsity whose dev losses were measured (--dev-corpus)"
        )
    caption = (
        "Each mark is one mask, its score the mean of its fine-tunings. Those of mask training include the masks along "
        "the way, which are not independent of each other."
    )
    return Figure("fig-05-score-by-loss", title, paper, caption, tuple(panels))


def by_steps(study: Study, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 6 and 14-16: score against the steps and the time of the search."""
    paper, title = "Fig. 6, 14-16", "Score against the cost of the search"
    panels = [
        chart
        for task in scores.panels
        for sparsity in sorted({t.sparsity for t in study.tickets if t.model == model})
        for chart in _cost_charts(study, model, scores, task, sparsity, lambda key: not starts_at_random(key[1]))
    ]
    if not panels:
        return Missing(
            title,
            paper,
            "fine-tunings of masks along a search (tamt train --save-at), and for IMP of searches with several --steps",
        )
    caption = (
        "Mask training's masks are taken along one search; IMP's come from searches with other pruning intervals, as "
        "in the paper. Time is that of the search up to the mask, dev evaluations counted, on the machine of the runs."
    )
    return Figure("fig-06-score-by-steps", title, paper, caption, tuple(panels))


def by_start(study: Study, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 7: mask training that starts from OMP against a random start."""
    paper, title = "Fig. 7", "Starting from OMP against a random start"
    tickets = [t for t in study.tickets if t.model == model]
    random = [t for t in tickets if starts_at_random(t.variant)]
    both = {(t.method, not_at_random(t.variant)) for t in random} & {(t.method, t.variant) for t in tickets}

    def paired(key: tuple[str, str | None]) -> bool:
        return (key[0], not_at_random(key[1])) in both

    panels = [
        chart
        for task in scores.panels
        for sparsity in sorted({t.sparsity for t in random})
        for chart in _cost_charts(study, model, scores, task, sparsity, paired, least=1, time=False)
    ]
    if not both or not panels:
        return Missing(
            title, paper, "searches with --initial random beside the same with --initial omp, and fine-tunings of both"
        )
    caption = "Hollow marks and dashed lines: the search started from a random mask of the same sparsity."
    return Figure("fig-07-start", title, paper, caption, tuple(panels))


def by_samples(study: Study, model: str, scores: Scores) -> Figure | Missing:
    """Fig. 9: score against the number of training samples, on a logarithmic axis."""
    paper, title = "Fig. 9", "Score against the number of fine-tuning samples"
    tickets = main_tickets(study, model)
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
                    series.append(_series(key, points))
            if series:
                full = _sample_points(scores.all, task, numbers, {None})
                series += [Series("full model", "full", full, dashed=True)] if full else []
                name = f"{task}, {sparsity:.0%} sparsity"
                panels.append(Chart(name, "training samples", scores.label(task), tuple(series), log_x=True))
    if not panels:
        return Missing(title, paper, "fine-tunings of one mask with several --train-samples, such as 1000 and all")
    caption = "Marks are means over all runs, bands one standard deviation; the axis is logarithmic."
    return Figure("fig-09-score-by-samples", title, paper, caption, tuple(panels))


def _sample_points(
    items: Sequence[FineTuning], task: str, numbers: Sequence[int], wanted: set[tuple | None]
) -> tuple[Point, ...]:
    points = []
    for number in numbers:
        values = [
            100 * i.score
            for i in items
            if i.task == task and i.train_samples == number and (i.ticket.identity if i.ticket else None) in wanted
        ]
        if values:
            points.append(_point(number, summarise(values)))
    return tuple(points)


def along_the_search(study: Study, model: str, _: Scores) -> Figure | Missing:
    """The dev losses, and how much of the mask changed, along the searches themselves."""
    title = "Pre-training loss along the search"
    names = {**{f"dev_{key}": label for key, label in LOSSES.items()}, "changed": "mask entries changed (%)"}
    panels = []
    for sparsity in sorted({c.ticket.sparsity for c in study.curves if c.ticket.model == model}):
        for name, y_label in names.items():
            gathered: dict[tuple, dict[int, list[float]]] = {}
            for curve in study.curves:
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
                _series(
                    key[:2],
                    tuple(_point(step, summarise(values)) for step, values in _thinned(sorted(by_step.items()))),
                    f", {key[2]:,} steps" if drawn.count(key[:2]) > 1 else "",
                )
                for key, by_step in sorted(gathered.items(), key=lambda item: (order_of(item[0][:2]), item[0][2]))
                if len(by_step) > 1
            )
            if series:
                panels.append(Chart(f"{sparsity:.0%} sparsity", "search steps", y_label, series))
    if not panels:
        return Missing(title, "of its own", "searches with dev text (--dev-corpus) and --eval-every")
    caption = "Means over mask seeds. IMP's loss falls on the way as its weights train, and rises with every pruning."
    return Figure("search-losses", title, "not in the paper", caption, tuple(panels))


def _thinned(items: list, most: int = 40) -> list:
    """At most about so many items, evenly taken, the last one always among them."""
    every = -(-len(items) // most)
    return items[::-every][::-1]


def between_models(study: Study) -> Figure | Missing:
    """Fig. 11: OMP subnetworks of several models against sparsity."""
    paper, title = "Fig. 11", "Models against each other: OMP"
    scores = {model: Scores(study, model) for model in study.models}
    tasks = sorted({task for s in scores.values() for task in s.panels})
    panels = []
    for task in [AVERAGE] * (AVERAGE in tasks) + [t for t in tasks if t != AVERAGE]:
        if task == AVERAGE and len({tuple(s.tasks) for s in scores.values()}) > 1:
            continue  # averages over other tasks do not compare
        series = []
        for number, (model, found) in enumerate(scores.items()):
            if task not in found.panels:
                continue
            tickets = main_tickets(study, model).get((OMP, None), {})
            points = [
                _point(100 * sparsity, summary)
                for sparsity, chosen in tickets.items()
                if (summary := found.of(chosen, task))
            ]
            if points and (full := found.full(task)):
                points.insert(0, _point(0, full[1], "full model"))
            if points:
                series.append(Series(model, f"model-{number}", tuple(points)))
        if len(series) > 1:
            panels.append(Chart(task, "sparsity (%)", scores[series[0].label].label(task), tuple(series)))
    if not panels:
        return Missing(
            title,
            paper,
            "OMP searches of two models, bert-base-uncased and roberta-base say, fine-tuned on the same task",
        )
    caption = "At 0 % the full models. Marks are means over all runs, bands one standard deviation."
    return Figure("fig-11-models", title, paper, caption, tuple(panels))


def _against_sparsity(scores: Scores, task: str, tickets: dict) -> Chart:
    series = []
    for key, by_sparsity in tickets.items():
        points = tuple(
            _point(100 * sparsity, summary, _mask_count(chosen))
            for sparsity, chosen in by_sparsity.items()
            if (summary := scores.of(chosen, task))
        )
        if points:
            series.append(_series(key, points))
    return Chart(task, "sparsity (%)", scores.label(task), tuple(series), scores.full(task))


def _loss_against_sparsity(study: Study, model: str, loss: str, tickets: dict) -> Chart:
    series = []
    for key, by_sparsity in tickets.items():
        points = tuple(
            _point(100 * sparsity, summarise(values))
            for sparsity, chosen in by_sparsity.items()
            if (values := [value for t in chosen if (value := getattr(t, loss)) is not None])
        )
        if points:
            series.append(_series(key, points))
    full = study.full_losses.get(model, {}).get(loss)
    reference = ("full model", summarise([full])) if full is not None else None
    return Chart("before fine-tuning", "sparsity (%)", LOSSES[loss], tuple(series), reference)


def _cost_charts(
    study: Study,
    model: str,
    scores: Scores,
    task: str,
    sparsity: float,
    wanted: Callable[[tuple[str, str | None]], bool],
    least: int = 2,
    time: bool = True,
) -> list[Chart]:
    """Score against steps, and against minutes, for the searches of one sparsity that have `least` masks on the way."""
    gathered: dict[tuple[str, str | None], dict[tuple[int, int], list[Ticket]]] = {}
    longest: dict[tuple[str, str | None], int] = {}
    for t in study.tickets:
        if t.model == model and t.sparsity == sparsity and t.steps and wanted((t.method, t.variant)):
            longest[t.method, t.variant] = max(t.steps, longest.get((t.method, t.variant), 0))
    for t in study.tickets:
        key = (t.method, t.variant)
        # Masks on the way of searches of other lengths saw another learning rate; IMP's lengths are the axis itself.
        here = key in longest and t.model == model and t.sparsity == sparsity and t.steps > 0
        if here and (t.method == IMP or t.steps == longest[key]):
            gathered.setdefault(key, {}).setdefault((t.step, t.steps), []).append(t)
    steps_series, time_series = [], []
    for key, by_step in sorted(gathered.items(), key=lambda item: order_of(item[0])):
        by_steps, by_time = [], []
        for (step, _), chosen in sorted(by_step.items()):
            if summary := scores.of(chosen, task):
                by_steps.append(_point(step, summary, _mask_count(chosen)))
                seconds = [t.seconds for t in chosen if t.seconds is not None]
                if len(seconds) == len(chosen):
                    by_time.append(_point(sum(seconds) / len(seconds) / 60, summary, f"after {step:,} steps"))
        if by_steps:
            steps_series.append(_series(key, tuple(by_steps)))
        if by_time:
            time_series.append(_series(key, tuple(by_time)))
    if not any(len(series.points) >= least for series in steps_series):
        return []
    one_shot = main_tickets(study, model).get((OMP, None), {}).get(sparsity, [])
    omp = scores.of(one_shot, task)
    name, y_label, full = f"{task}, {sparsity:.0%} sparsity", scores.label(task), scores.full(task)
    start = (Series(METHODS[OMP].label, OMP, (_point(0, omp, "no search"),)),) if omp else ()
    charts = [Chart(name, "search steps", y_label, (*start, *steps_series), full)]
    if time and time_series:
        charts.append(Chart(name, "search time (min)", y_label, (*start, *time_series), full))
    return charts


def scatter(tickets: Sequence[tuple[Ticket, float]], scores: Scores, task: str) -> tuple[Series, ...]:
    """A mark a mask, for each method; tickets come with their x."""
    gathered: dict[tuple[str, str | None], list[Point]] = {}
    for ticket, value in tickets:
        if summary := scores.of([ticket], task):
            about = about_ticket(ticket)
            gathered.setdefault((ticket.method, ticket.variant), []).append(_point(value, summary, about))
    return tuple(
        _series(key, tuple(sorted(points, key=lambda point: point[:2])), line=False)
        for key, points in sorted(gathered.items(), key=lambda item: order_of(item[0]))
    )


def about_ticket(ticket: Ticket) -> str:
    """A mask's seed and step, and where it lies if it came without its search."""
    parts = ["/".join(Path(ticket.file).parts[-2:])] if ticket.file else []
    parts += [f"mask seed {ticket.seed}"] if ticket.seed is not None else []
    return ", ".join([*parts, f"step {ticket.step:,}"] if ticket.steps else parts)


def _series(key: tuple[str, str | None], points: tuple[Point, ...], more: str = "", line: bool = True) -> Series:
    return Series(label_of(*key) + more, key[0], points, line, dashed=is_unusual(key[1]))


def _point(x: float, summary: Summary, about: str = "") -> Point:
    return Point(x, summary.mean, summary.std, summary.runs, about)


def _mask_count(tickets: Sequence[Ticket]) -> str:
    return f"{len(tickets)} mask{'s' * (len(tickets) != 1)}"


def _trained_on(scores: Scores) -> str:
    numbers = ", ".join(f"{task} {number:,}" for task, number in scores.samples.items())
    return f"Fine-tuned on so many samples: {numbers}."


def suffixes(models: Sequence[str]) -> dict[str, str]:
    """What the file names of each model's figures end with: nothing where there is one model."""
    if len(models) < 2:
        return dict.fromkeys(models, "")
    return {model: f"-{name}" for model, name in distinct({model: _slug(model) for model in models}).items()}


def _slug(text: str) -> str:
    """A text as part of a file name."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).strip("-.") or "model"
