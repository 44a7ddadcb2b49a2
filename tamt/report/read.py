"""From a folder of runs to the results that a report shows."""

from dataclasses import replace
from pathlib import Path

from tamt.report.comparable import keep_most_common_version, keep_shared_settings, with_labels
from tamt.report.fine_tunings import read_fine_tunings
from tamt.report.latencies import is_latency, read_latencies
from tamt.report.results import Results
from tamt.report.scan import finished_runs
from tamt.report.searches import read_evaluations, read_searches
from tamt.report.variants import variants
from tamt.runtime.errors import UserError


def read_results(folder: Path) -> Results:
    """Read every run folder below `folder`; `skipped` lists what is damaged, unfinished or not comparable.

    Raises:
        UserError: there is no such folder, or no finished run in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder of a study, or one with run folders in it")
    results = Results(folder)
    runs = list(finished_runs(results))
    if not runs:
        why = f" ({results.skipped[0].run}: {results.skipped[0].why})" if results.skipped else ""
        raise UserError(
            f"no finished run was found in {folder}{why}; give the folder of a study, or run tamt train and tamt "
            "finetune with an --output in it"
        )
    results.searches = {run.name: run.path for run in runs if "method" in run.config}
    runs = keep_most_common_version(results, runs)
    results.version = runs[0].version
    runs = with_labels(results, runs)
    searches = [run for run in runs if "method" in run.config]
    named = variants(run.config for run in searches)
    searches = [replace(run, variant=variant) for run, variant in zip(searches, named, strict=True)]
    comparable = keep_shared_settings(results, searches)
    fine_tunings = keep_shared_settings(results, [run for run in runs if "task" in run.config])
    read_searches(results, comparable)
    others = [run for run in runs if "method" not in run.config and "task" not in run.config]
    read_evaluations(results, [run for run in others if not is_latency(run)])
    read_latencies(results, [run for run in others if is_latency(run)])
    read_fine_tunings(results, fine_tunings)
    if not results.tickets and not results.fine_tunings:
        if not results.skipped:
            raise UserError(
                f"no search or fine-tuning was found in {folder}, only other runs; give the folder of a study, or run "
                "tamt train and tamt finetune with an --output in it"
            )
        first = results.skipped[0]
        raise UserError(f"no run in {folder} can be used: {first.run} {first.why}; mend it or give another folder")
    return results
