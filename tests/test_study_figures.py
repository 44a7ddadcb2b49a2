"""The tables of the studies in the docs say what the kept runs say."""

import json
import re
import tarfile
from pathlib import Path
from statistics import fmean, stdev

import pytest

DOCS = Path(__file__).parents[1] / "docs"
METHODS = {"TAMT-KD": "tamt-kd", "Wanda": "wanda", "OMP": "omp", "IMP": "imp", "random": "rand"}
TASKS = {"STS-B": "stsb", "SST-2": "sst2", "TREC": "trec", "Subj": "subj", "RTE": "rte", "CoLA": "cola"}

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


def scores(runs: Runs, fine_tuning: str) -> list[float]:
    """The scores of the runs that match a pattern, one for each seed, at the learning rate with the best mean."""
    rates: dict[float, list[float]] = {}
    for folder, results in runs.items():
        if re.fullmatch(fine_tuning, folder):
            for row in results:
                rates.setdefault(row["lr"], []).append(row["score"])
    return max(rates.values(), key=fmean, default=[])


def score(runs: Runs, fine_tuning: str) -> float | None:
    """The mean of those scores × 100; None without any."""
    found = scores(runs, fine_tuning)
    return 100 * fmean(found) if found else None


def assert_says(row: Row, heading: str, value: float | None, decimals: int = 1) -> None:
    """The cell under this heading shows the value, or says that it was not run."""
    said = "not run" if value is None else f"{value:.{decimals}f}"
    assert row[heading].strip("*").replace("−", "-") == said, (heading, row)


def assert_best_is_bold(rows: list[Row], heading: str) -> None:
    """The best of these rows is bold under this heading, and no other; none is, if none is better than another."""
    values = {cell: float(cell.strip("*")) for row in rows if re.match(r"[*\d]", cell := row[heading])}
    best = {f"**{max(values.values()):.1f}**"} if len(set(values.values())) > 1 else set()
    assert {cell for cell in values if cell.startswith("**")} == best, (heading, rows)


def assert_evidence(runs: Runs, folder: str, row: Row, title: str, sparsity: float) -> None:
    """A row of the evidence study is what the runs in this folder say of the method that its title names."""
    name, _, addition = title.partition(", ")
    if addition == "second seed":
        folder = "evidence-fp32"
    if name == "full model":
        folder, subnetwork = "evidence", "full_demo"
    else:
        method = METHODS[name]
        scores = {"tamt-kd": "_two-valued" if addition == "the paper's start" else "_activation"}.get(method, "")
        steps = "_steps150" * (method in ("tamt-kd", "imp"))
        subnetwork = f"{method}_demo_s{sparsity}{scores}{steps}"
        search = subnetwork.replace(f"s{sparsity}", "s0.9") if method == "imp" else subnetwork  # one search finds all
        assert_says(row, "KD loss", fmean(losses(runs, rf"{folder}/search/{search}(_seed\d)?", sparsity)), 3)
    found = {
        task: score(runs, rf"{folder}/finetune/{short}_{subnetwork}(_mask\d)?(_n8000)?_lr[\d.]+_seed\d")
        for task, short in TASKS.items()
        if task in row
    }
    for task, value in found.items():
        assert_says(row, task, value)
    if "mean" in row:
        assert_says(row, "mean", fmean(value for value in found.values() if value is not None))


def test_the_evidence_study_at_70_percent(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[0]
    for row in rows:
        assert_evidence(runs, "evidence", row, row["70 % pruned"], 0.7)
    for heading in [*TASKS, "mean"]:
        assert_best_is_bold(rows[1:], heading)


def test_the_evidence_study_at_80_and_90_percent(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[1]
    for row in rows:
        assert_evidence(runs, "evidence", row, row["1"], int(row["pruned"].split()[0]) / 100)
    for heading in [*TASKS, "mean"]:
        for pruned in ("80 %", "90 %"):
            assert_best_is_bold([row for row in rows if row["pruned"] == pruned], heading)


def test_the_evidence_study_at_50_percent(runs: Runs) -> None:
    rows = tables("reports.md", "The evidence study")[2]
    for row in rows:
        assert_evidence(runs, "evidence-fp32", row, row["50 % pruned"], 0.5)
    for task in TASKS:
        assert_best_is_bold(rows[1:], task)


def test_the_evidence_study_of_the_papers_start_and_random_masks(runs: Runs) -> None:
    for row in tables("reports.md", "The evidence study")[4]:
        assert_evidence(runs, "evidence-bf16", row, row["1"], int(row["pruned"].split()[0]) / 100)


def test_what_is_won_back_is_what_the_report_says() -> None:
    (report,) = tables("example-report/report.md", "What is won back of OMP's loss")
    reported = {(row["sparsity"], row["method"].removesuffix(", activation scores")): row for row in report}
    for row in tables("reports.md", "The evidence study")[3]:
        for method in ("TAMT-KD", "Wanda", "IMP"):
            said = re.findall(r"[\d.−]+\d", row[method])
            for figure, heading in zip(said, ["share won back", "low", "high"], strict=False):
                value = float(reported[row["pruned"], method][heading])
                assert float(figure.replace("−", "-")) == pytest.approx(value, abs=0.0051), (method, row)


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
        found = {
            task: score(runs, rf"{folder}/finetune/{short}_{subnetwork}_mask\d(_n8000)?_lr[\d.]+_seed\d")
            for task, short in TASKS.items()
        }
        for task, value in found.items():
            assert_says(row, task, value)
        assert_says(row, "mean", fmean(value for value in found.values() if value is not None))


def test_the_study_of_objectives(runs: Runs) -> None:
    every_task, earlier = tables("reports.md", "Which objective")
    for row in [*every_task, *earlier]:
        objective = row["`--objective`"].strip("`").replace(":", "-").replace(",", "-")
        subnetwork = f"tamt_demo_s0.7_{objective}_activation_steps150"
        found = {}
        for heading in (heading for heading in row if heading.partition(",")[0] in TASKS):
            task, _, addition = heading.partition(", ")
            folder = {"": "objectives-bf16", "float32": "objectives", "dropout": "objectives-dropout"}[addition]
            run = rf"{folder}/finetune/{TASKS[task]}_{subnetwork}_mask0(_n8000)?_seed0"
            found[heading] = score(runs, run)
            assert_says(row, heading, found[heading])
        if "mean" in row:
            loss = fmean(losses(runs, f"objectives-bf16/search/{subnetwork}_seed0", 0.7))
            assert_says(row, "KD loss", loss, 3)
            assert_says(row, "mean", fmean(value for value in found.values() if value is not None))
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
        for task in ("TREC", "STS-B", "SST-2"):
            run = rf"evidence-base/finetune/{TASKS[task]}_{subnetwork}(_mask\d)?_n2000(_lr{default})?_seed\d"
            results = [row for folder, rows in runs.items() if re.fullmatch(run, folder) for row in rows]
            by_seed = [found["score"] for found in sorted(results, key=lambda found: found["seed"])]
            assert row[task] == ", ".join("–" if score is None else f"{100 * score:.1f}" for score in by_seed), row


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


def test_the_study_of_structures(runs: Runs) -> None:
    methods = {
        "TAMT-KD": r"tamt-kd_demo_{}_steps150",
        "random": "rand_demo_{}",
        "by norm (`omp`)": "omp_demo_{}",
        "`--drop alternate`": "drop_demo_{}_alternate",
        "`--drop last`, and `omp`": "drop_demo_{}_last",
        "`--drop first`": "drop_demo_{}_first",
    }
    for row in tables("structured-tickets.md", "How good")[0]:
        subnetwork = "full_demo"
        if row["method"] != "full model":
            subnetwork = methods[row["method"]].format(row["structure"].strip("`").replace(":", "-"))
            found = losses(runs, rf"structures/search/{subnetwork}(_seed\d)?", 0.5)
            low, _, high = row["KD dev loss"].partition(" to ")
            assert low == f"{min(found):.3f}", row
            assert (high or low) == f"{max(found):.3f}", row
        for heading, task in {"STS-B, Pearson": "stsb", "SST-2, accuracy": "sst2"}.items():
            found = scores(runs, rf"structures/finetune/{task}_{subnetwork}(_mask\d)?(_n8000)?_lr[\d.]+_seed\d")
            assert_mean_and_spread(row, heading, found)
