"""The searches of a study: the subnetworks that they found, and the losses along the way."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tamt.masks.file import digest_of, load_packed
from tamt.methods import METHODS, SCHEDULE_STEPS, is_one_shot
from tamt.report.comparable import hashable, plain
from tamt.report.results import Curve, Results, TicketRecord
from tamt.report.scan import FinishedRun, SearchLog, number_in, optional_number, read_log
from tamt.runtime.errors import UserError
from tamt.training.run_folder import RESULTS

CURVES = ("dev_mlm_loss", "dev_kd_loss", "changed")
"""What of the lines of metrics.jsonl is drawn along the search."""


def read_searches(results: Results, runs: list[FinishedRun]) -> None:
    """Add the tickets of searches, and their curves, to `results`."""
    tickets: list[tuple[TicketRecord, tuple]] = []
    for run in runs:
        log = read_log(results, run)
        try:
            rows = run.rows[-1:] if run.config.get("pattern") else run.rows  # IMP passes other patterns on the way
            final = [_final_ticket(run, row, log) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            results.skip(run.name, f"has a row in {RESULTS} that is not from a search ({error})")
            continue
        curve = _curve(final[-1], log)
        if not is_one_shot(str(run.config["method"])) and curve.points:
            results.curves.append(curve)
        text = dev_text(run.config)
        tickets += [(ticket, text) for ticket in (*final, *_tickets_on_the_way(run, final[-1], log))]
    _add_tickets(results, tickets)


def _final_ticket(run: FinishedRun, row: Mapping[str, Any], log: SearchLog) -> TicketRecord:
    """The ticket of a row of the results."""
    method = str(run.config["method"])
    one_shot, mask = is_one_shot(method), _mask_of(run, row)
    return TicketRecord(
        model=run.model,
        method=method,
        variant=run.variant,
        sparsity=round(number_in(row, "sparsity"), 3),
        seed=int(row["seed"]) if is_seeded(method) else None,
        steps=0 if one_shot else int(run.config.get("steps") or SCHEDULE_STEPS),
        step=int(row["step"]),
        final=True,
        mlm_loss=optional_number(row, "mlm_loss"),
        kd_loss=optional_number(row, "kd_loss"),
        seconds=None if log.resumed else optional_number(row, "seconds"),
        seconds_per_step=None if one_shot else log.seconds_per_step(),
        mask=mask,
        run=run.name,
        digest=_digest_of(mask),
    )


def _tickets_on_the_way(run: FinishedRun, last: TicketRecord, log: SearchLog) -> list[TicketRecord]:
    """The tickets of the masks that `--save-at` wrote before the last step."""
    tickets = []
    for file in sorted(run.path.glob("masks/step-*.safetensors")):
        number = file.stem.removeprefix("step-")
        if number.isdecimal() and int(number) != last.step:
            step = int(number)
            line = log.lines.get(step, {})
            ticket = replace(
                last,
                step=step,
                final=False,
                mask=file,
                digest=_digest_of(file),
                mlm_loss=optional_number(line, "dev_mlm_loss"),
                kd_loss=optional_number(line, "dev_kd_loss"),
                seconds=log.seconds_at(step),
            )
            tickets.append(ticket)
    return tickets


def _curve(ticket: TicketRecord, log: SearchLog) -> Curve:
    points = []
    for step, line in sorted(log.lines.items()):
        values = {key: float(line[key]) for key in line if key in CURVES and isinstance(line[key], int | float)}
        if values:
            points.append((step, log.seconds_at(step), values))
    return Curve(ticket, tuple(points))


def _add_tickets(results: Results, tickets: list[tuple[TicketRecord, tuple]]) -> None:
    """Add each subnetwork once. Losses on other dev text than that of most masks of a model are left out.

    So are searches with the settings of another one that found another mask: their text has changed, say.
    """
    texts: dict[str, Counter] = {}
    for ticket, text in tickets:
        texts.setdefault(ticket.model, Counter())[text] += ticket.kd_loss is not None
    results.dev_texts = {model: counts.most_common(1)[0][0] for model, counts in texts.items() if counts.total()}
    known: dict[tuple, TicketRecord] = {}
    differing: set[str] = set()
    for ticket, text in tickets:
        other = known.get(ticket.description)
        if other and not other.has(ticket.digest) and ticket.run not in differing:
            results.skip(ticket.run, f"has the settings of {other.run} and another mask; they are not averaged")
            differing.add(ticket.run)
        if ticket.run in differing:
            continue
        if ticket.kd_loss is not None and text != (common := results.dev_texts[ticket.model]):
            results.skip(
                ticket.run,
                f"was measured on other dev text ({plain(text)}) than most ({plain(common)}); its losses are not shown",
            )
            ticket = replace(ticket, mlm_loss=None, kd_loss=None)
        if other:
            if ticket.final:
                results.skip(ticket.run, f"found the same mask as {other.run}; only that one is counted")
            results.copies.append((ticket, other))
            continue
        known[ticket.description] = ticket
        results.tickets.append(ticket)
    results.curves = [curve for curve in results.curves if curve.ticket.run not in differing]
    results.full_losses = {model: {} for model in texts}


def dev_text(config: Mapping[str, Any]) -> tuple:
    """The text of the dev losses, because only losses on the same text compare."""
    dev, corpus = config.get("dev_corpus"), config.get("corpus")
    own = dev or corpus
    part = "" if dev or own in (["demo"], ["wikitext-103"]) or not own else "the last 5 % of"
    return (part, hashable(own), config.get("max_length"), config.get("eval_blocks"))


def _mask_of(run: FinishedRun, row: Mapping[str, Any]) -> Path:
    """Where the mask of a row is or was: in its run's folder, wherever that was moved to."""
    parts = Path(str(row.get("mask"))).parts
    return run.path.joinpath(*parts[-2:] if parts[-2:-1] == ("masks",) else parts[-1:])


def _digest_of(mask: Path) -> str | None:
    """The digest of a mask file; None if it is not there any more, or damaged."""
    try:
        return digest_of(load_packed(mask))
    except UserError:
        return None


def read_evaluations(results: Results, runs: list[FinishedRun]) -> None:
    """Add the losses of runs of `tamt evaluate` to their masks, and those of the full model.

    Those on other text than the searches measured theirs on are left out.
    """
    for run in runs:
        row = run.rows[0]
        try:
            losses = {key: value for key in ("mlm_loss", "kd_loss") if (value := optional_number(row, key)) is not None}
        except (TypeError, ValueError) as error:
            results.skip(run.name, f"has a row in {RESULTS} that is not from an evaluation ({error})")
            continue
        if not losses:
            results.skip(run.name, "is not a run of tamt train, finetune or evaluate")
            continue
        text = ("", *(hashable(run.config.get(name)) for name in ("corpus", "max_length", "blocks")))
        if text != (common := results.dev_texts.setdefault(run.model, text)):
            results.skip(run.name, f"was measured on other text ({plain(text)}) than the searches ({plain(common)})")
            continue
        if not row.get("mask"):
            results.full_losses.setdefault(run.model, {}).update(losses)
            continue
        ticket = ticket_of(results, run, row)
        if ticket is None:
            results.skip(run.name, "evaluates a mask whose search is not below the folder")
            continue
        place = [known.identity for known in results.tickets].index(ticket.identity)
        if results.tickets[place].kd_loss is None:
            results.tickets[place] = replace(
                results.tickets[place], mlm_loss=losses.get("mlm_loss"), kd_loss=losses.get("kd_loss")
            )


def ticket_of(results: Results, run: FinishedRun, row: Mapping[str, Any]) -> TicketRecord | None:
    """The ticket with the mask that a row names, even if the study was moved since; None if there is none.

    A mask of that name with other bits is none.
    """
    search, inside = _search_of(results, run, str(row["mask"])), mask_key(str(row["mask"]))[1]
    seed, step = row.get("mask_seed"), row.get("mask_step")
    counted = [(ticket, ticket) for ticket in results.tickets] + results.copies
    candidates = [
        one
        for ticket, one in counted
        if ticket.mask is not None
        and ticket.run == search
        and mask_key(str(ticket.mask))[1] == inside
        and ticket.model == run.model
        and row.get("method") in (None, ticket.method)
        and abs(ticket.sparsity - float(row.get("sparsity", ticket.sparsity))) < 0.002
        and (seed is None or ticket.seed in (None, seed))
        and (step is None or ticket.step == step)
        and ticket.has(row.get("mask_digest"))
    ]
    return candidates[0] if candidates else None


def _search_of(results: Results, run: FinishedRun, mask: str) -> str | None:
    """The name of the search that a mask file is of, even of one that is left out; None if it is not below the folder.

    Of several searches whose folders have the same name it is the one at the path of the mask, else the nearest to the
    run, as studies are moved with all their runs. None if two are as near.
    """
    folder, inside = mask_key(mask)
    named = {name: path for name, path in results.searches.items() if path.name == folder}
    for name, path in named.items():
        if (path / inside).resolve() == Path(mask).resolve():
            return name
    near = {name: len(os.path.commonpath([name, run.name])) for name in named}
    nearest = [name for name in near if near[name] == max(near.values())]
    return nearest[0] if len(nearest) == 1 else None


def mask_key(mask: str) -> tuple[str, str]:
    """The name of the search's folder, and the path of the mask in it."""
    parts = Path(mask).parts
    inside = 2 if parts[-2:-1] == ("masks",) else 1
    return (parts[-inside - 1] if len(parts) > inside else "", "/".join(parts[-inside:]))


def is_seeded(method: str) -> bool:
    """Whether the masks of a method, perhaps one of another version of tamt, depend on the seed."""
    return method not in METHODS or METHODS[method].seeded
