"""The scores of a model, and the order and the names in which a report shows its subnetworks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tamt.methods import METHODS, PUBLISHED
from tamt.report.figure import Point, Series
from tamt.report.numbers import percent
from tamt.report.results import FineTuningRecord, Results, TicketRecord
from tamt.report.statistics import Summary, summarise
from tamt.report.variants import is_unusual
from tamt.runtime.names import distinct, slug

LABELS = {**{method.name: method.label for method in METHODS.values()}, PUBLISHED: "published mask"}
"""The names of methods in a report, in the order in which they are shown."""
LOSSES = {"mlm_loss": "MLM dev loss (nats)", "kd_loss": "KD dev loss"}
DIGITS = 1
"""Digits behind the point of a score × 100."""
AVERAGE = "average"
"""Stands for a task: the average over all of them."""

MethodVariant = tuple[str, str | None]
"""A method and the variant of its search; see `tamt.report.variants`."""


class Scores:
    """The scores of a model that can be averaged: those with the most training samples of each task."""

    def __init__(self, results: Results, model: str) -> None:
        self.model = model
        self.all = [item for item in results.fine_tunings if item.model == model]
        self.tasks = sorted({item.task for item in self.all})
        self.samples = {task: max(i.train_samples for i in self.all if i.task == task) for task in self.tasks}
        self.metrics = {item.task: item.metric for item in self.all}
        self._main: dict[tuple | None, list[FineTuningRecord]] = {}
        for item in self.all:
            if item.train_samples == self.samples[item.task]:
                self._main.setdefault(item.mask_identity, []).append(item)

    @property
    def panels(self) -> list[str]:
        """The tasks; if there are several, after their average."""
        return [AVERAGE, *self.tasks] if len(self.tasks) > 1 else self.tasks

    def runs(self, ticket: TicketRecord | None, task: str) -> dict[int, float]:
        """The scores × 100 of a ticket, or of the full model, on a task, by the seed of the fine-tuning.

        An average is over all tasks of the model, for seeds that have all of them.
        """
        found = self._main.get(ticket.identity if ticket else None, [])
        by_task = {name: {i.seed: 100 * i.score for i in found if i.task == name} for name in self.tasks}
        if task != AVERAGE:
            return by_task[task]
        seeds = set.intersection(*(set(scores) for scores in by_task.values())) if by_task else set()
        return {seed: sum(scores[seed] for scores in by_task.values()) / len(by_task) for seed in sorted(seeds)}

    def of(self, tickets: Iterable[TicketRecord], task: str) -> Summary | None:
        """Mean and spread over all fine-tunings of some tickets; None if there are none."""
        values = [score for ticket in tickets for score in self.runs(ticket, task).values()]
        return summarise(values, DIGITS) if values else None

    def full(self, task: str) -> tuple[str, Summary] | None:
        """Label and mean of the full model; None if it was not fine-tuned."""
        values = self.runs(None, task)
        return ("full model", summarise(list(values.values()), DIGITS)) if values else None

    def label(self, task: str) -> str:
        """The label of an axis with a task's score."""
        if task == AVERAGE:
            return "average score (× 100)"
        metric = self.metrics[task]
        unit = {"matthews": "Matthews corr.", "pearson": "Pearson corr.", "f1": "F1"}.get(metric, metric)
        return f"{unit} (× 100)"


def label_of(method: str, variant: str | None = None) -> str:
    """The name of a method in the report, with the variant of its search."""
    name = LABELS.get(method, method)
    return f"{name}, {variant}" if variant else name


def order_of(key: MethodVariant) -> tuple:
    """The sort key of a method and variant."""
    return ([*LABELS].index(key[0]) if key[0] in LABELS else len(LABELS), key[0], key[1] or "")


def main_tickets(results: Results, model: str) -> dict[MethodVariant, dict[float, list[TicketRecord]]]:
    """The final masks by method, variant and sparsity. Of searches of several lengths only those of `_main_length`."""
    fine_tuned = _fine_tuned(results)
    return {
        key: {sparsity: by_length[_main_length(fine_tuned, by_length)] for sparsity, by_length in by_sparsity.items()}
        for key, by_sparsity in tickets_by_length(results, model).items()
    }


def tickets_by_length(results: Results, model: str) -> dict[MethodVariant, dict[float, dict[int, list[TicketRecord]]]]:
    """The final masks by method, variant, sparsity and length of the search in steps, in the order of a report."""
    found: dict[MethodVariant, dict[float, dict[int, list[TicketRecord]]]] = {}
    final = [ticket for ticket in results.tickets if ticket.model == model and ticket.final]
    for ticket in sorted(final, key=lambda t: (order_of((t.method, t.variant)), t.sparsity, t.steps)):
        by_sparsity = found.setdefault((ticket.method, ticket.variant), {})
        by_sparsity.setdefault(ticket.sparsity, {}).setdefault(ticket.steps, []).append(ticket)
    return found


def _fine_tuned(results: Results) -> Counter:
    """The number of fine-tunings of each mask, by its identity."""
    return Counter(item.mask_identity for item in results.fine_tunings)


def _main_length(fine_tuned: Counter, by_length: Mapping[int, list[TicketRecord]]) -> int:
    """The length whose masks have the most fine-tunings; of equals the longest."""
    return max(by_length, key=lambda steps: (sum(fine_tuned[t.identity] for t in by_length[steps]), steps))


def other_lengths(results: Results, model: str) -> str:
    """A sentence about searches of several lengths, of which one is shown; empty if there are none."""
    fine_tuned = _fine_tuned(results)
    several = [
        f"{label_of(*key)} at {percent(sparsity)}: {shown:,}, "
        f"not {', '.join(f'{steps:,}' for steps in by_length if steps != shown)}"
        for key, by_sparsity in tickets_by_length(results, model).items()
        for sparsity, by_length in by_sparsity.items()
        if len(by_length) > 1
        for shown in [_main_length(fine_tuned, by_length)]
    ]
    return f"Only searches of one length are shown (steps): {'; '.join(several)}." if several else ""


def about_ticket(ticket: TicketRecord) -> str:
    """The seed and step of a mask; also its file if its search is not below the folder."""
    parts = ["/".join(Path(ticket.file).parts[-2:])] if ticket.file else []
    parts += [f"mask seed {ticket.seed}"] if ticket.seed is not None else []
    return ", ".join([*parts, f"step {ticket.step:,}"] if ticket.steps else parts)


def series_of(key: MethodVariant, points: tuple[Point, ...], more: str = "", line: bool = True) -> Series:
    """The points of a method in its colour, dashed if the variant is not the default; `more` is added to the label."""
    name = label_of(*key)
    return Series(name + more, key[0], points, line, is_unusual(key[1]), name)


def scatter(
    tickets: Sequence[tuple[TicketRecord, float]],
    scores: Scores,
    task: str,
    about: Callable[[TicketRecord], str] = about_ticket,
) -> tuple[Series, ...]:
    """A series of marks for each method, one mark per ticket; `tickets` are pairs of a ticket and its x."""
    gathered: dict[MethodVariant, list[Point]] = {}
    for ticket, value in tickets:
        if summary := scores.of([ticket], task):
            point = Point.of(value, summary, about(ticket))
            gathered.setdefault((ticket.method, ticket.variant), []).append(point)
    return tuple(
        series_of(key, tuple(sorted(points, key=lambda point: point[:2])), line=False)
        for key, points in sorted(gathered.items(), key=lambda item: order_of(item[0]))
    )


def mask_count(tickets: Sequence[TicketRecord]) -> str:
    """How many masks there are, in words."""
    return f"{len(tickets)} mask{'s' * (len(tickets) != 1)}"


def suffixes(models: Sequence[str]) -> dict[str, str]:
    """The end of the file names of each model's figures: nothing if there is one model."""
    if len(models) < 2:
        return dict.fromkeys(models, "")
    return {model: f"-{name}" for model, name in distinct({model: slug(model) for model in models}).items()}
