"""The tables of a report, for the page and as CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from tamt.finetuning.rates import rates_in_words
from tamt.methods import FULL, OMP
from tamt.report.figure import Figure, HeatMap
from tamt.report.masks import MaskGroup
from tamt.report.results import LatencyRecord, Results, TicketRecord
from tamt.report.scores import AVERAGE, LOSSES, Scores, label_of, main_tickets, order_of, tickets_by_length
from tamt.report.statistics import (
    FEWEST_MASKS,
    FEWEST_PAIRS,
    Summary,
    paired_difference,
    rank_correlation,
    share_won_back,
    summarise,
)

Cell = str | int | float | Summary | None


@dataclass(frozen=True)
class Table:
    """A table; `name` is the stem of its file. A column of summaries becomes three columns of the CSV."""

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)

    def csv(self) -> str:
        """The table as CSV, with unrounded numbers."""
        wide = [any(isinstance(row[i], Summary) for row in self.rows) for i in range(len(self.columns))]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(
            heading
            for name, split in zip(self.columns, wide, strict=True)
            for heading in ([f"{name} mean", f"{name} std", f"{name} runs"] if split else [name])
        )
        for row in self.rows:
            writer.writerow(
                part for cell, split in zip(row, wide, strict=True) for part in (_split(cell) if split else [cell])
            )
        return buffer.getvalue()


def _split(cell: Cell) -> Sequence[Cell]:
    return (cell.mean, cell.std, cell.runs) if isinstance(cell, Summary) else (cell, None, None)


def scores_table(results: Results) -> Table:
    """Mean and spread of the scores, by model, method and sparsity."""
    tasks = sorted({task for model in results.models for task in Scores(results, model).panels}, key=_average_first)
    rows: list[tuple[Cell, ...]] = []
    for model in results.models:
        scores = Scores(results, model)
        if (full := [_full(scores, task) for task in tasks]) and any(full):
            rows.append((model, 0.0, "full model", None, *full))
        found = [
            (sparsity, key, steps, tickets)
            for key, by_sparsity in tickets_by_length(results, model).items()
            for sparsity, by_length in by_sparsity.items()
            for steps, tickets in by_length.items()
        ]
        for sparsity, key, steps, tickets in sorted(found, key=lambda item: (item[0], order_of(item[1]), item[2])):
            cells = [scores.of(tickets, task) if task in scores.panels else None for task in tasks]
            if any(cells):
                rows.append((model, sparsity, label_of(*key), steps or None, *cells))
    note = (
        "Scores × 100: mean ± standard deviation over runs (mask seeds × fine-tuning seeds); in brackets, the number "
        "of runs. An average is taken over all tasks for each run." + rates_note(results)
    )
    return Table("scores", "Scores", note, ("model", "sparsity", "method", "steps", *tasks), rows)


def rates_note(results: Results) -> str:
    """A sentence about the tasks with several learning rates; empty if there are none."""
    tasks: dict[str, list[str]] = {}
    for (_, task), rates in results.rates.items():
        if len(rates) > 1:
            named = tasks.setdefault(rates_in_words(rates), [])
            named += [task] * (task not in named)
    if not tasks:
        return ""
    listed = "; ".join(f"{words} for {', '.join(named)}" for words, named in tasks.items())
    return (
        f" Learning rate: {listed}. Every mask and the full model are tried at the same rates. Each method is "
        "shown at the rate with the best mean over its masks and seeds, on the same dev rows as the scores."
    )


def _average_first(task: str) -> tuple[bool, str]:
    return (task != AVERAGE, task)


def _full(scores: Scores, task: str) -> Summary | None:
    line = scores.full(task) if task in scores.panels else None
    return line[1] if line else None


def searches_table(results: Results, groups: list[MaskGroup]) -> Table:
    """Losses, search time and distance from OMP of the final masks, for each length of search."""
    distances = {ticket.identity: value for group in groups for ticket, value in group.distances}
    gathered: dict[tuple, list[TicketRecord]] = {}
    for ticket in results.tickets:
        if ticket.final:
            key = (ticket.model, ticket.sparsity, order_of((ticket.method, ticket.variant)), ticket.steps, ticket.step)
            gathered.setdefault(key, []).append(ticket)
    rows: list[tuple[Cell, ...]] = []
    for (model, sparsity, _, steps, step), tickets in sorted(gathered.items(), key=lambda item: item[0]):
        first = tickets[0]
        rows.append(
            (
                model,
                sparsity,
                label_of(first.method, first.variant),
                step if steps else None,
                steps or None,
                len(tickets),
                _summary(t.mlm_loss for t in tickets),
                _summary(t.kd_loss for t in tickets),
                _summary(None if t.seconds is None else t.seconds / 60 for t in tickets),
                _summary(distances.get(t.identity) for t in tickets),
            )
        )
    note = "Means over mask seeds. The schedule is the number of steps over which the learning rate falls to 0."
    columns = (
        *("model", "sparsity", "method", "step of the mask", "schedule", "masks"),
        *("MLM dev loss", "KD dev loss", "search time (min)", "distance from OMP"),
    )
    return Table("searches", "Searches", note, columns, rows)


def latencies_table(results: Results) -> Table:
    """Time and size of the full model and the final masks, in the way in which each runs fastest, beside the score."""
    gathered: dict[tuple, list[LatencyRecord]] = {}
    for latency in results.latencies:
        t = latency.ticket
        if t is None or t.final:
            kind = (t.sparsity, order_of((t.method, t.variant)), t.steps) if t else (0.0, order_of((FULL, None)), 0)
            gathered.setdefault((latency.model, latency.setting, *kind, latency.way), []).append(latency)
    rows: list[tuple[Cell, ...]] = []
    full: dict[tuple[str, str], float] = {}
    for (model, setting, sparsity, _, steps, way), measured in sorted(gathered.items(), key=lambda item: item[0]):
        scores = Scores(results, model)
        tickets = [latency.ticket for latency in measured if latency.ticket]
        label = label_of(tickets[0].method, tickets[0].variant) if tickets else "full model"
        milliseconds = summarise([latency.milliseconds for latency in measured])
        if not tickets:
            full[model, setting] = milliseconds.mean
        faster = full[model, setting] / milliseconds.mean if (model, setting) in full else None
        megabytes = summarise([latency.megabytes for latency in measured]).mean
        score = None
        if scores.panels:
            score = scores.of(tickets, scores.panels[0]) if tickets else _full(scores, scores.panels[0])
        values = (milliseconds, faster, megabytes, score)
        rows.append((model, setting, sparsity, label, steps or None, way, *values))
    note = (
        "Forward passes on a CPU. Each subnetwork runs in its fastest way; the size is that of its file in float32. "
        "Means over the masks that searches ended with. Scores × 100 are those of the first table, over all tasks if "
        "there are several."
    )
    columns = (
        *("model", "rows × tokens", "sparsity", "method", "steps"),
        *("runs", "ms", "times as fast", "MB on disk", "score"),
    )
    return Table("times", "Time and size", note, columns, rows)


def _summary(values: Iterable[float | None]) -> Summary | None:
    """The summary of the values that are known; None if there are none."""
    known = [value for value in values if value is not None]
    return summarise(known) if known else None


def differences_table(results: Results) -> Table:
    """Paired differences between methods, with bootstrap intervals."""
    rows: list[tuple[Cell, ...]] = []
    for model in results.models:
        scores = Scores(results, model)
        tickets = main_tickets(results, model)
        sparsities = sorted({sparsity for by_sparsity in tickets.values() for sparsity in by_sparsity})
        for sparsity in sparsities:
            for a, b in combinations(tickets, 2):
                by_task = {
                    task: _pairs(scores, task, tickets[a].get(sparsity, []), tickets[b].get(sparsity, []))
                    for task in scores.tasks
                }
                pooled = [pair for pairs in by_task.values() for pair in pairs]
                all_there = len(by_task) > 1 and all(by_task.values())
                chosen = {"all tasks": pooled, **by_task} if all_there else by_task
                for task, pairs in chosen.items():
                    if not pairs:
                        continue
                    found = paired_difference(pairs)
                    interval, counts = found.interval or (None, None), (found.pairs, found.masks)
                    verdict = (
                        f"too few pairs (fewer than {FEWEST_PAIRS})"
                        if found.interval is None
                        else "higher"
                        if found.interval[0] > 0
                        else "lower"
                        if found.interval[1] < 0
                        else "undecided"
                    )
                    rows.append(
                        (model, sparsity, task, label_of(*a), label_of(*b), found.mean, *interval, *counts, verdict)
                    )
    note = (
        "Scores × 100 of the first method minus those of the second, with the same task, mask seed and fine-tuning "
        "seed (OMP has one mask). The 95 % interval is a percentile bootstrap with 10,000 draws of masks and then "
        f"of their runs, for {FEWEST_PAIRS} pairs or more. It is not corrected for the number of comparisons. With one "
        "or two masks it holds for those masks only, not for the method."
    )
    columns = (
        "model",
        "sparsity",
        "task",
        "method",
        "minus",
        "difference",
        "low",
        "high",
        "pairs",
        "masks",
        "first is",
    )
    return Table("differences", "Paired differences between methods", note, columns, rows)


def won_back_table(results: Results) -> Table:
    """How much of what OMP loses against the full model each method wins back, over all tasks."""
    rows: list[tuple[Cell, ...]] = []
    for model in results.models:
        scores = Scores(results, model)
        tickets = main_tickets(results, model)
        for sparsity, baseline in tickets.get((OMP, None), {}).items():
            for key, by_sparsity in tickets.items():
                if key == (OMP, None) or sparsity not in by_sparsity:
                    continue
                triples = {
                    task: list(_won_and_lost(scores, task, by_sparsity[sparsity], baseline)) for task in scores.tasks
                }
                if not triples or not all(triples.values()) or not (found := share_won_back(list(triples.values()))):
                    continue
                counts = (len(triples), sum(map(len, triples.values())))
                intervals = (*(found.these_tasks or (None, None)), *(found.such_tasks or (None, None)))
                rows.append((model, sparsity, label_of(*key), found.share, *intervals, *counts))
    note = (
        "The score of the method minus that of OMP, over the score of the full model minus that of OMP, each a mean "
        "over the tasks: 1 is as good as the full model, 0 as OMP. Runs are compared at the same fine-tuning seed. The "
        "95 % intervals are percentile bootstraps with 10,000 draws: of the runs of each task (for these tasks), or of "
        "tasks and then of their runs (for other tasks like these). There is none for these tasks if one of them has a "
        "single run."
    )
    columns = (
        *("model", "sparsity", "method", "share won back", "low", "high"),
        *("low, other tasks", "high, other tasks", "tasks", "runs"),
    )
    return Table("won-back", "What is won back of OMP's loss", note, columns, rows)


def _won_and_lost(
    scores: Scores, task: str, tickets: list[TicketRecord], baseline: list[TicketRecord]
) -> Iterator[tuple[float, float]]:
    """What each run of some masks won against OMP, and what OMP lost against the full model, at the same seed."""
    full = scores.runs(None, task)
    omp = {seed: score for ticket in baseline for seed, score in scores.runs(ticket, task).items()}
    for ticket in tickets:
        for seed, score in scores.runs(ticket, task).items():
            if seed in full and seed in omp:
                yield score - omp[seed], full[seed] - omp[seed]


def _pairs(
    scores: Scores, task: str, first: list[TicketRecord], second: list[TicketRecord]
) -> list[tuple[int | None, float]]:
    """Differences of the scores of runs with the same seeds, with the mask seed. A mask without a seed fits all."""
    pairs: list[tuple[int | None, float]] = []
    for a in first:
        for b in second:
            if a.seed is not None and b.seed is not None and a.seed != b.seed:
                continue
            one, other = scores.runs(a, task), scores.runs(b, task)
            mask = a.seed if a.seed is not None else b.seed
            pairs += [(mask, one[seed] - other[seed]) for seed in sorted(one.keys() & other.keys())]
    return pairs


def correlation_table(results: Results) -> Table:
    """Spearman's correlation of the losses before fine-tuning with the score after it (as in Fig. 5)."""
    rows: list[tuple[Cell, ...]] = []
    for model in results.models:
        scores = Scores(results, model)
        for task in scores.panels:
            for sparsity in sorted({t.sparsity for t in results.tickets if t.model == model}):
                for loss, label in LOSSES.items():
                    pairs = [
                        (getattr(ticket, loss), summary.mean)
                        for ticket in results.tickets
                        if ticket.model == model
                        and ticket.sparsity == sparsity
                        and getattr(ticket, loss) is not None
                        and (summary := scores.of([ticket], task))
                    ]
                    if len(pairs) < 2:
                        continue
                    found = rank_correlation([loss for loss, _ in pairs], [score for _, score in pairs])
                    reason = None
                    if found.rho is None:
                        few = found.masks < FEWEST_MASKS
                        reason = f"too few masks (fewer than {FEWEST_MASKS})" if few else "one side is constant"
                    interval = found.interval or (None, None)
                    rows.append((model, task, sparsity, label, found.rho, *interval, found.p, found.masks, reason))
    note = (
        "Spearman's ρ over masks, each with the mean score of its fine-tunings. Negative: a lower loss comes with a "
        f"higher score. The 95 % interval is a percentile bootstrap, and p is from 10,000 random permutations, for "
        f"{FEWEST_MASKS} masks or more. Both are too narrow if they include several masks of one search, which are not "
        "independent."
    )
    columns = ("model", "task", "sparsity", "loss", "ρ", "low", "high", "p", "masks", "missing because")
    return Table("correlation", "Pre-training loss and score", note, columns, rows)


def kept_table(groups: list[MaskGroup]) -> Table:
    """The number of entries that masks keep of each matrix."""
    rows: list[tuple[Cell, ...]] = [
        (g.model, g.sparsity, name, f"{shape[0]} × {shape[1]}", least, most, least / (shape[0] * shape[1]))
        for g in groups
        for name, (shape, least, most) in g.kept.items()
        if len(shape) == 2
    ]
    note = "The fewest and most entries that a mask keeps of the matrix. They are equal if all masks are exact."
    columns = ("model", "sparsity", "matrix", "shape", "kept, fewest", "kept, most", "share kept")
    return Table("kept", "Kept entries by matrix", note, columns, rows)


def runs_table(results: Results) -> Table:
    """Every fine-tuning, also those at other rates."""
    rows: list[tuple[Cell, ...]] = []
    chosen = [(item, "yes") for item in results.fine_tunings]
    for item, best in [*chosen, *((item, "no") for item in results.other_rates)]:
        t = item.ticket
        of_mask: tuple[Cell, ...] = ("full model", 0.0, None, None, None)
        if t:
            of_mask = (label_of(t.method, t.variant), t.sparsity, t.seed, t.step, t.steps or None)
        rate = "default" if item.lr is None else item.lr
        own = (item.metric, item.seed, item.train_samples, rate, best, item.score, item.seconds, item.run)
        rows.append((item.model, item.task, *of_mask, *own))
    columns = (
        *("model", "task", "method", "sparsity", "mask seed", "step of the mask", "schedule"),
        *("metric", "seed", "training samples", "learning rate", "best rate", "score", "seconds", "run"),
    )
    note = "The report averages only fine-tunings at the best rate of their mask."
    return Table("runs", "Every fine-tuning", note, columns, rows)


def skipped_table(results: Results) -> Table:
    """The runs and files that are not in the report."""
    rows: list[tuple[Cell, ...]] = [(item.run, item.why) for item in results.skipped]
    return Table("left-out", "Left out", "Runs and files that are not in the report, and why.", ("run", "why"), rows)


def figure_table(figure: Figure) -> Table:
    """The values of a figure."""
    return Table(
        figure.name, figure.title, "", ("panel", "series", "x axis", "x", "y axis", "y", "about"), [*_values(figure)]
    )


def _values(figure: Figure) -> Iterator[tuple[Cell, ...]]:
    for panel in figure.panels:
        if isinstance(panel, HeatMap):
            for row, values in zip(panel.rows, panel.values, strict=True):
                for column, value in zip(panel.columns, values, strict=True):
                    if value is not None:
                        yield panel.title, row, "", column, panel.label, Summary(value, None, 1), ""
            continue
        if panel.reference:
            yield panel.title, panel.reference[0], panel.x_label, None, panel.y_label, panel.reference[1], ""
        for series in panel.series:
            for x, y, spread, runs, about in series.points:
                yield panel.title, series.label, panel.x_label, x, panel.y_label, Summary(y, spread, runs), about
