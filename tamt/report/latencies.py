"""The times of a study: how long a forward pass of each subnetwork takes."""

from collections import Counter
from collections.abc import Iterable

from tamt.report.results import LatencyRecord, Results
from tamt.report.scan import FinishedRun, number_in
from tamt.report.searches import ticket_of
from tamt.runtime.errors import UserError
from tamt.training.run_folder import RESULTS


def is_latency(run: FinishedRun) -> bool:
    """Whether a run is one of `tamt bench`."""
    return "fastest_ms" in run.rows[0]


def read_latencies(results: Results, runs: Iterable[FinishedRun]) -> None:
    """Add what runs of `tamt bench` measured to `results`. Times on other CPUs than that of most runs are left out."""
    runs = list(runs)
    cpus = Counter(str(run.rows[0].get("cpu")) for run in runs)
    for run in runs:
        cpu, (common, _) = str(run.rows[0].get("cpu")), cpus.most_common(1)[0]
        if cpu != common:
            results.skip(run.name, f"was measured on {cpu}, most others on {common}; their times are not compared")
            continue
        try:
            results.latencies += _latencies(results, run)
        except UserError as error:
            results.skip(run.name, str(error))
        except (KeyError, TypeError, ValueError) as error:
            results.skip(run.name, f"has a row in {RESULTS} that is not from tamt bench ({error})")


def _latencies(results: Results, run: FinishedRun) -> list[LatencyRecord]:
    """What a run measured. Raises UserError if its mask is not known; else as a damaged row does."""
    ticket = None
    if mask := run.config.get("mask"):
        ticket = ticket_of(results, run, {"mask": mask})
        if ticket is None:
            raise UserError("measures a mask whose search is not below the folder")
    return [
        LatencyRecord(
            model=run.model,
            ticket=ticket,
            batch_size=int(row["batch_size"]),
            tokens=int(row["tokens"]),
            threads=int(row["threads"]),
            precision=str(row["precision"]),
            milliseconds=number_in(row, "fastest_ms"),
            way=str(row["fastest"]),
            megabytes=number_in(row, "megabytes"),
        )
        for row in run.rows
    ]
