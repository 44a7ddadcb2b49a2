"""The tables of the studies in the docs say what the kept runs say."""

import json
import re
import tarfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import pytest

from tamt.report.statistics import rank_correlation, share_won_back

DOCS = Path(__file__).parents[1] / "docs"
METHODS = {"TAMT-KD": "tamt-kd", "Wanda": "wanda", "OMP": "omp", "IMP": "imp", "random": "rand"}
TASKS = {
    "STS-B": "stsb",
    "STS-B from 0": "stsb",
    "SST-2": "sst2",
    "TREC": "trec",
    "Subj": "subj",
    "RTE": "rte",
    "CoLA": "cola",
}
FROM_MEAN = "regression-start"
"""The folder with the runs on STS-B that start at the mean of the labels; in all others they start at 0."""

Runs = dict[str, list[dict]]
Row = dict[str, str]


@pytest.fixture(scope="module")
def runs() -> Runs:
    """The results of every kept run, by its folder."""
    with tarfile.open(DOCS / "example-report" / "runs.tar.xz") as archive:
        files = {file.name: archive.extractfile(file) for file in archive if file.name.endswith("/results.json")}
        return {name.removesuffix("/results.json"): json.load(file)["results"] for name, file in files.items() if file}


def tables(page: str, section: str) -> list[list[Row]]:
    """The rows of each table in a section of a page, by heading. Columns without one have a number."""
    text = (DOCS / page).read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = []
    for match in re.finditer(r"(^\|.*\n)+", text, re.M):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in match[0].splitlines()]
        headings = [name or str(place) for place, name in enumerate(lines[0])]
        found.append([dict(zip(headings, cells, strict=True)) for cells in lines[2:]])
    return found


def losses(runs: Runs, search: str, sparsity: float) -> list[float]:
    """The KD losses at this sparsity of the searches whose folders match a pattern."""
    results = [row for folder, rows in runs.items() if re.fullmatch(search, folder) for row in rows]
    return [row["kd_loss"] for row in results if abs(row["sparsity"] - sparsity) < 1e-3]


def by_seed(runs: Runs, fine_tuning: str) -> dict[int, float]:
    """The scores of the runs that match a pattern by their seed, at the learning rate with the best mean."""
    rates: dict[float, dict[int, float]] = {}
    for folder, results in runs.items():
        if re.fullmatch(fine_tuning, folder):
            for row in results:
                rates.setdefault(row["lr"], {})[row["seed"]] = row["score"]
    return max(rates.values(), key=lambda found: fmean(found.values()), default={})


def scores(runs: Runs, fine_tuning: str) -> list[float]:
    """The scores of `by_seed`."""
    return [*by_seed(runs, fine_tuning).values()]


def fine_tunings(folder: str, heading: str, subnetwork: str, seed: str = r"\d") -> str:
    """The pattern of the runs of a study on the task under this heading."""
    folder = FROM_MEAN if heading == "STS-B" else folder
    return rf"{folder}/finetune/{TASKS[heading]}_{subnetwork}(_mask\d)?(_n8000)?_lr[\d.]+_seed{seed}"


def score(runs: Runs, fine_tuning: str) -> float | None:
    """The mean of those scores × 100; None without any."""
    found = scores(runs, fine_tuning)
    return 100 * fmean(found) if found else None


def mean_of(tasks: Iterable[float | None]) -> float | None:
    """The mean over tasks; None if one was not run."""
    found = [*tasks]
    return None if None in found else fmean(value for value in found if value is not None)


def assert_says(row: Row, heading: str, value: float | None, decimals: int = 1) -> None:
    """The cell under this heading shows the value, or says that it was not run."""
    said = "not run" if value is None else f"{value:.{decimals}f}"
    assert row[heading].strip("*").replace("−", "-") == said, (heading, row)


def assert_best_is_bold(rows: list[Row], heading: str) -> None:
    """The best of these rows is bold under this heading, and no other; none is, if none is better than another."""
    values = {cell: float(cell.strip("*")) for row in rows if re.match(r"[*\d]", cell := row[heading])}
    best = {f"**{max(values.values()):.1f}**"} if len(set(values.values())) > 1 else set()
    assert {cell for cell in values if cell.startswith("**")} == best, (heading, rows)


def subnetwork_of(title: str, sparsity: float) -> str:
    """The part of a run's name that says what the title of a row says, such as `TAMT-KD, the paper's start`."""
    name, _, addition = title.partition(", ")
    if name == "full model":
        return "full_demo"
    method = METHODS[name]
    scores = {"tamt-kd": "_two-valued" if addition == "the paper's start" else "_activation"}.get(method, "")
    return f"{method}_demo_s{sparsity}{scores}" + "_steps150" * (method in ("tamt-kd", "imp"))


def assert_evidence(runs: Runs, folder: str, row: Row, title: str, sparsity: float) -> None:
    """A row of the evidence study is what the runs in this folder say of the method that its title names."""
    name, _, addition = title.partition(", ")
    seed = r"\d"
    if sparsity == 0.9 and name == "TAMT-KD" and folder == "evidence":  # a row for each of its two seeds
        folder, seed = ("evidence-fp32", "1") if addition == "second seed" else (folder, "0")
    subnetwork = subnetwork_of(title, sparsity)
    if name == "full model":
        folder = "evidence"
    else:  # one search by IMP finds the masks of all sparsities
        search = subnetwork.replace(f"s{sparsity}", "s0.9") if name == "IMP" else subnetwork
        assert_says(row, "KD loss", fmean(losses(runs, rf"{folder}/search/{search}(_seed\d)?", sparsity)), 3)
    found = {task: score(runs, fine_tunings(folder, task, subnetwork, seed)) for task in TASKS if task in row}
    for task, value in found.items():
        assert_says(row, task, value)
    if "mean" in row:
        assert_says(row, "mean", mean_of(found.values()))


def test_the_evidence_study_at_70_percent(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[0]
    for row in rows:
        assert_evidence(runs, "evidence", row, row["70 % pruned"], 0.7)
    for heading in [heading for heading in rows[0] if heading in (*TASKS, "mean")]:
        assert_best_is_bold(rows[1:], heading)


def test_the_evidence_study_at_80_and_90_percent(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[1]
    for row in rows:
        assert_evidence(runs, "evidence", row, row["1"], int(row["pruned"].split()[0]) / 100)
    for heading in [heading for heading in rows[0] if heading in (*TASKS, "mean")]:
        for pruned in ("80 %", "90 %"):
            assert_best_is_bold([row for row in rows if row["pruned"] == pruned], heading)


def test_the_evidence_study_at_50_percent(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[2]
    for row in rows:
        assert_evidence(runs, "evidence-fp32", row, row["50 % pruned"], 0.5)
    for heading in [heading for heading in rows[0] if heading in TASKS]:
        assert_best_is_bold(rows[1:], heading)


def test_the_evidence_study_of_the_papers_start_and_random_masks(runs: Runs) -> None:
    for row in tables("reports.md", "The evidence study")[4]:
        assert_evidence(runs, "evidence-bf16", row, row["1"], int(row["pruned"].split()[0]) / 100)


def test_what_is_won_back_of_omps_loss(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[3]
    tasks = [task for task in TASKS if task != "STS-B from 0"]
    for row, method in product(rows, ("TAMT-KD", "Wanda")):
        sparsity = int(row["pruned"].split()[0]) / 100
        won_and_lost = []
        for task in tasks:
            own, omp, full = (
                by_seed(runs, fine_tunings("evidence", task, subnetwork_of(title, sparsity)))
                for title in (method, "OMP", "full model")
            )
            shared = own.keys() & omp.keys() & full.keys()
            won_and_lost.append([(own[seed] - omp[seed], full[seed] - omp[seed]) for seed in sorted(shared)])
        found = share_won_back(won_and_lost)
        assert found is not None
        expected = [found.share, *(found.these_tasks or ())]
        said = [float(figure.replace("−", "-")) for figure in re.findall(r"[\d.−]+\d", row[method])]
        assert said == pytest.approx(expected, abs=0.0051), (method, row)


def test_the_rank_correlation_of_loss_and_score(runs: Runs) -> None:
    tasks = [task for task in TASKS if task != "STS-B from 0"]
    kd_losses, means = [], []
    for title in ("TAMT-KD", "Wanda", "OMP", "IMP", "TAMT-KD, the paper's start", "random"):
        subnetwork = subnetwork_of(title, 0.7)
        found = [by_seed(runs, fine_tunings("evidence", task, subnetwork)) for task in tasks]
        for seeds in [(0, 1, 2)] if title == "OMP" else [(0,), (1,), (2,)]:  # OMP has one mask
            search = subnetwork.replace("s0.7", "s0.[79]") + (f"_seed{seeds[0]}" if title != "OMP" else "")
            kd_losses.append(losses(runs, f"evidence/search/{search}", 0.7)[0])
            means.append(fmean(scores[seed] for scores in found for seed in seeds))
    text = (DOCS / "reports.md").read_text("utf-8")
    said = re.search(r"Spearman's\s+ρ\s+is\s+(\S+)\s+\((\S+)\s+to\s+(\S+)\)\s+over\s+the\s+16\s+masks", text)
    assert said is not None
    correlation = rank_correlation(kd_losses, means)
    assert correlation.interval is not None
    assert [figure.replace("−", "-") for figure in said.groups()] == [
        f"{value:.2f}" for value in (correlation.rho, *correlation.interval)
    ]


def test_where_a_regression_starts(runs: Runs) -> None:
    (rows,) = tables("reports.md", "Where a regression starts")
    for row in rows:
        subnetwork = subnetwork_of(row["1"], int(row["pruned"].split()[0]) / 100)
        found = {
            "from 0": by_seed(runs, fine_tunings("evidence", "STS-B from 0", subnetwork)),
            "from the mean": by_seed(runs, fine_tunings("evidence", "STS-B", subnetwork)),
        }
        shared = set.intersection(*({*seeds} for seeds in found.values()))
        assert row["seeds"] == str(len(shared))
        for heading, scores in found.items():
            assert_says(row, heading, 100 * fmean(scores[seed] for seed in shared))


def test_longer_fine_tuning_on_cola(runs: Runs) -> None:
    rows = tables("reports.md", "Longer fine-tuning and longer searches")[0]
    for row in rows:
        name = row["CoLA, 70 % pruned"]
        method = METHODS.get(name, "full")
        subnetwork = f"{method}_demo" if method == "full" else rf"{method}_demo_s0.7\w*"
        for heading, pattern in {
            "two epochs, as above": rf"evidence/finetune/cola_{subnetwork}_lr[\d.]+_seed\d",
            "six epochs": rf"longer/finetune/cola_{subnetwork}_seed\d",
        }.items():
            found = {key: rows for key, rows in runs.items() if "two-valued" not in key}
            assert_says(row, heading, score(found, pattern))
    for heading in ("two epochs, as above", "six epochs"):
        assert_best_is_bold(rows[1:], heading)


def test_longer_searches(runs: Runs) -> None:
    rows = tables("reports.md", "Longer fine-tuning and longer searches")[1]
    assert_evidence(runs, "evidence", rows[0], "full model", 0.7)
    for row in rows[1:]:
        steps = row["steps"].partition(", ")[0].replace(",", "")
        folder = "evidence" if steps == "150" else "evidence-fp32"
        subnetwork = f"tamt-kd_demo_s0.7_activation_steps{steps}"
        assert_says(row, "KD loss", fmean(losses(runs, rf"{folder}/search/{subnetwork}_seed\d", 0.7)), 3)
        found = {task: score(runs, fine_tunings(folder, task, subnetwork)) for task in TASKS if task in row}
        if steps != "150":
            found["STS-B"] = score(runs, rf"starts/finetune/stsb_{subnetwork}_mask0_lr0.0003_seed0")
        for task, value in found.items():
            assert_says(row, task, value)
        assert_says(row, "mean", mean_of(found.values()))


def test_the_study_of_starts(runs: Runs) -> None:
    (rows,) = tables("reports.md", "The start in longer searches")
    tasks = [heading for heading in rows[0] if heading in TASKS]
    for row in rows:
        start = {"two values": "two-valued", "activation": "activation"}[row["start"]]
        subnetwork = f"tamt-kd_demo_s0.7_{start}_steps{row['steps'].replace(',', '')}"
        assert_says(row, "KD loss", *losses(runs, rf"starts/search/{subnetwork}_seed0", 0.7), 3)
        for task in tasks:
            run = rf"starts/finetune/{TASKS[task]}_{subnetwork}_mask0(_n8000)?_lr0.0003_seed0"
            assert_says(row, task, score(runs, run))
    for steps in {row["steps"] for row in rows}:
        for task in tasks:
            assert_best_is_bold([row for row in rows if row["steps"] == steps], task)


def test_the_study_of_objectives(runs: Runs) -> None:
    every_task, earlier = tables("reports.md", "Which objective")
    for row in [*every_task, *earlier]:
        objective = row["`--objective`"].strip("`").replace(":", "-").replace(",", "-")
        subnetwork = f"tamt_demo_s0.7_{objective}_activation_steps150"
        found = {}
        for heading in (heading for heading in row if heading.partition(",")[0] in TASKS):
            task, _, addition = heading.partition(", ")
            folder = {"": "objectives-bf16", "float32": "objectives", "dropout": "objectives-dropout"}[addition]
            folder = FROM_MEAN if task == "STS-B" else folder
            run = rf"{folder}/finetune/{TASKS[task]}_{subnetwork}_mask0(_n8000)?_seed0"
            found[heading] = score(runs, run)
            assert_says(row, heading, found[heading])
        if "mean" in row:
            loss = fmean(losses(runs, f"objectives-bf16/search/{subnetwork}_seed0", 0.7))
            assert_says(row, "KD loss", loss, 3)
            assert_says(row, "mean", mean_of(found.values()))
    for rows in (every_task, earlier):
        for heading in rows[0]:
            if heading not in ("`--objective`", "KD loss"):
                assert_best_is_bold(rows, heading)


def test_the_study_of_a_base_sized_model(runs: Runs) -> None:
    (rows,) = tables("reports.md", "A base-sized model")
    for row in rows:
        sparsity = int(row["pruned"].split()[0]) / 100
        subnetwork, default = "full_demo-base", "2e-05"
        if sparsity:
            trained = "_activation_steps150" * (row["1"] == "TAMT-KD")
            subnetwork, default = f"{METHODS[row['1']]}_demo-base_s{sparsity}{trained}", "0.00016"
            found = losses(runs, rf"evidence-base/search/{subnetwork}(_seed\d)?", sparsity)
            assert row["KD loss"] == ", ".join(f"{loss:.3f}" for loss in found), row
        for task in ("TREC", "STS-B", "STS-B from 0", "SST-2"):
            folder = FROM_MEAN if task == "STS-B" else "evidence-base"
            run = rf"{folder}/finetune/{TASKS[task]}_{subnetwork}(_mask\d)?_n2000(_lr{default})?_seed\d"
            results = [row for folder, rows in runs.items() if re.fullmatch(run, folder) for row in rows]
            found = [result["score"] for result in sorted(results, key=lambda result: result["seed"])]
            said = ", ".join("–" if score is None else f"{100 * score:.1f}" for score in found)
            assert row[task] == (said or "not run"), row


def assert_mean_and_spread(row: Row, heading: str, found: list[float]) -> None:
    assert row[heading].replace("*", "") == f"{fmean(found):.3f} ± {stdev(found):.3f}", (heading, row)


def test_the_study_of_patterns(runs: Runs) -> None:
    for row in tables("patterns.md", "What it costs")[0]:
        name, _, pattern = row["50 % pruned"].partition(", ")
        subnetwork = "full_demo"
        if name != "full model":
            steps = "_steps150" * (name == "TAMT-KD")
            subnetwork = f"{METHODS[name]}_demo_{pattern.replace(':', '-') or 's0.5'}{steps}"
            assert_says(row, "KD dev loss", fmean(losses(runs, rf"patterns/search/{subnetwork}(_seed\d)?", 0.5)), 3)
        for heading, task in {"STS-B, Pearson": "stsb", "TREC, accuracy": "trec"}.items():
            found = scores(runs, rf"patterns/finetune/{task}_{subnetwork}(_mask\d)?_lr[\d.]+_seed\d")
            assert_mean_and_spread(row, heading, found)


STRUCTURED = {
    "TAMT-KD": r"tamt-kd_demo_{}_steps150",
    "random": "rand_demo_{}",
    "by norm (`omp`)": "omp_demo_{}",
    "`--drop alternate`": "drop_demo_{}_alternate",
    "`--drop last`": "drop_demo_{}_last",
    "`--drop last`, and `omp`": "drop_demo_{}_last",
    "`--drop first`": "drop_demo_{}_first",
}


def test_the_study_of_structures(runs: Runs) -> None:
    for row in tables("structured-tickets.md", "How good")[0]:
        subnetwork = "full_demo"
        if row["method"] != "full model":
            subnetwork = STRUCTURED[row["method"]].format(row["structure"].strip("`").replace(":", "-"))
            found = losses(runs, rf"structures/search/{subnetwork}(_seed\d)?", 0.5)
            low, _, high = row["KD dev loss"].partition(" to ")
            assert low == f"{min(found):.3f}", row
            assert (high or low) == f"{max(found):.3f}", row
        for heading, task in {"STS-B from 0, Pearson": "stsb", "SST-2, accuracy": "sst2"}.items():
            found = scores(runs, rf"structures/finetune/{task}_{subnetwork}(_mask\d)?(_n8000)?_lr[\d.]+_seed\d")
            assert_mean_and_spread(row, heading, found)


def test_dropped_layers_and_where_a_regression_starts(runs: Runs) -> None:
    for row in tables("structured-tickets.md", "How good")[1]:
        subnetwork = STRUCTURED[row["`layers:0.5`"]].format("layers-0.5")
        found = losses(runs, rf"{FROM_MEAN}/search/{subnetwork}(_seed\d)?", 0.5)
        assert row["KD dev loss"] == ", ".join(f"{loss:.3f}" for loss in found)
        for heading, folder in {"STS-B from 0": "structures", "STS-B": FROM_MEAN}.items():
            scores = by_seed(runs, rf"{folder}/finetune/stsb_{subnetwork}(_mask\d)?_lr0.0003_seed[01]")
            assert row[heading] == ", ".join(f"{scores[seed]:.3f}" for seed in sorted(scores)), row
