"""The fine-tunings of a study, at the best learning rate of each kind of subnetwork."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tamt.finetuning.rates import best_over_runs, rates_in_words
from tamt.methods import trains_scores
from tamt.report.results import FineTuningRecord, Results, TicketRecord
from tamt.report.scan import FinishedRun, number_in, optional_number
from tamt.report.searches import is_seeded, mask_key, ticket_of
from tamt.report.variants import UNKNOWN
from tamt.runtime.errors import UserError
from tamt.training.run_folder import RESULTS


def read_fine_tunings(results: Results, runs: list[FinishedRun]) -> None:
    """Add the fine-tunings to `results`, and the tickets of masks whose search is not below the folder."""
    runs_by_key: dict[tuple, str] = {}
    without_search: list[TicketRecord] = []
    for run in runs:
        try:
            fine_tuning = _fine_tuning(results, run, without_search)
        except UserError as error:
            results.skip(run.name, str(error))
            continue
        except (KeyError, TypeError, ValueError) as error:
            results.skip(run.name, f"has a row in {RESULTS} that is not from a fine-tuning ({error})")
            continue
        key = (*_of_one_mask(fine_tuning), fine_tuning.lr, fine_tuning.seed)
        if key in runs_by_key:
            results.skip(run.name, f"repeats {runs_by_key[key]}; only that one is counted")
            continue
        runs_by_key[key] = run.name
        results.fine_tunings.append(fine_tuning)
    results.tickets += without_search
    _choose_rates(results)


def _fine_tuning(results: Results, run: FinishedRun, without_search: list[TicketRecord]) -> FineTuningRecord:
    """The fine-tuning of a run. Its score is NaN if it is undefined, until the learning rates are chosen.

    Raises:
        UserError: it cannot be used; the message says why, as `Results.skip` takes it.
        KeyError, TypeError, ValueError: its row is not one of a fine-tuning.
    """
    row = run.rows[0]
    ticket = None
    if mask := row.get("mask") or run.config.get("mask"):
        row = {**row, "mask": mask}
        ticket = ticket_of(results, run, row)
        if ticket is None:
            folder = mask_key(str(mask))[0]
            if any(path.name == folder for path in results.searches.values()):
                raise UserError(f"its mask of {folder} is left out, replaced, or of another model or search")
            ticket = _known(results, _ticket_without_search(run, row), without_search, run.name)
    return FineTuningRecord(
        model=run.model,
        ticket=ticket,
        task=run.task,
        metric=str(row.get("metric", "score")),
        seed=int(row["seed"]),
        train_samples=int(row["train_samples"]),
        lr=optional_number(run.config, "lr"),
        score=math.nan if row.get("score") is None else number_in(row, "score"),
        seconds=optional_number(row, "seconds"),
        run=run.name,
    )


def _known(results: Results, ticket: TicketRecord, known: list[TicketRecord], run: str) -> TicketRecord:
    """The known ticket with the same mask; if there is none, the ticket itself, which is then known."""
    alike = [other for other in known if other.description == ticket.description]
    same = next((other for other in alike if other.has(ticket.digest)), None)
    if same:
        return same
    if alike:
        results.skip(run, f"has another mask than runs before it that name {ticket.file} too; they count as two masks")
    known.append(ticket)
    return ticket


def _ticket_without_search(run: FinishedRun, row: Mapping[str, Any]) -> TicketRecord:
    """The ticket of a mask whose search is not below the folder: only what the row of the fine-tuning says is known."""
    method = str(row["method"])
    return TicketRecord(
        model=run.model,
        method=method,
        variant=UNKNOWN if trains_scores(method) else None,
        sparsity=round(number_in(row, "sparsity"), 3),
        seed=row.get("mask_seed") if is_seeded(method) else None,
        steps=0,
        step=int(row.get("mask_step") or 0),
        final=True,
        file=str(row["mask"]),
        digest=row.get("mask_digest"),
    )


def _of_one_mask(item: FineTuningRecord) -> tuple:
    """What fine-tunings share that differ in learning rate and seed alone: model, task, mask, training samples."""
    return (item.model, item.task, item.mask_identity or (), item.train_samples)


def _of_one_kind(item: FineTuningRecord) -> tuple:
    """What fine-tunings share between which the best learning rate is chosen: all that `_of_one_mask` names but the
    seed of the mask, and the mask itself.
    """
    kind = replace(item.ticket, seed=None, file=None).description if item.ticket else ()
    return (item.model, item.task, kind, item.train_samples)


def _choose_rates(results: Results) -> None:
    """Keep the fine-tunings at the best learning rate of each kind of mask, chosen from one list for all of a task.

    The list is the one that most masks of a model and task were given. A mask that lacks one of its rates is left out,
    as are runs at rates outside it, and seeds that were not run at every rate.
    """
    groups: dict[tuple, dict[float | None, dict[int, FineTuningRecord]]] = {}
    for item in results.fine_tunings:
        groups.setdefault(_of_one_mask(item), {}).setdefault(item.lr, {})[item.seed] = item
    _find_rates(results, groups)
    results.fine_tunings = []
    kinds: dict[tuple, dict[float | None, dict[tuple, FineTuningRecord]]] = {}
    for (model, task, *_), by_rate in groups.items():
        rates = results.rates[model, task]
        complete = all(rate in by_rate for rate in rates)
        for rate, by_seed in by_rate.items():
            for item in by_seed.values():
                if complete and rate in rates:
                    of_kind = kinds.setdefault(_of_one_kind(item), {})
                    of_kind.setdefault(rate, {})[item.mask_identity, item.seed] = item
                else:
                    why = f"has lr {rates_in_words((rate,))} where most runs of {task} have {rates_in_words(rates)}"
                    results.skip(item.run, f"{why}; they are not compared")
    for of_kind in kinds.values():
        _keep_best_rate(results, of_kind)


def _find_rates(results: Results, groups: Mapping[tuple, Mapping[float | None, Any]]) -> None:
    """Find the list of rates that most masks of each model and task were given."""
    lists: dict[tuple[str, str], Counter] = {}
    for (model, task, *_), by_rate in groups.items():
        lists.setdefault((model, task), Counter())[frozenset(by_rate)] += 1
    for place, counted in lists.items():
        rates = sorted(counted.most_common(1)[0][0], key=lambda rate: (rate is not None, rate))
        results.rates[place] = tuple(rates)
        if rates != [None]:
            results.settings.append((*place, None, "lr", rates_in_words(results.rates[place])))


def _keep_best_rate(results: Results, by_rate: Mapping[float | None, Mapping[tuple, FineTuningRecord]]) -> None:
    scores = {
        rate: {run: None if math.isnan(item.score) else item.score for run, item in by_run.items()}
        for rate, by_run in by_rate.items()
    }
    best, runs = best_over_runs(scores)
    for rate, by_run in by_rate.items():
        for run, item in by_run.items():
            if run not in runs:
                results.skip(item.run, f"has seed {item.seed}, which was not run at every rate; they are not compared")
            elif math.isnan(item.score):
                results.skip(item.run, "has no score: its metric is undefined")
            else:
                (results.fine_tunings if rate == best else results.other_rates).append(item)
