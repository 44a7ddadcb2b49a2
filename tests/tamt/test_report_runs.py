"""What the report reads: a whole study, and everything that can be wrong with one."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from example_study import ExampleStudy

from tamt.cli import main
from tamt.data.tasks import TASKS
from tamt.report.figure import Figure, Missing
from tamt.report.figures import figures_of
from tamt.report.latency_figure import by_latency
from tamt.report.masks import MaskGroup, compare_masks, mask_figures
from tamt.report.paper import paper_table, settings_table
from tamt.report.read import read_results
from tamt.report.results import Results
from tamt.report.scores import AVERAGE, Scores, label_of, scatter, suffixes
from tamt.report.tables import differences_table, latencies_table, runs_table, scores_table
from tamt.runtime.errors import UserError

MODEL = "bert-base-uncased"
TEXT = {"corpus": ["demo"], "max_length": 128}
"""What the searches of an example are measured on, as tamt evaluate names it."""


@pytest.fixture
def study(tmp_path: Path) -> ExampleStudy:
    """TAMT-KD with two mask seeds, and OMP, fine-tuned on one task with two seeds."""
    example = ExampleStudy(tmp_path / "study")
    for ticket in (*example.search(MODEL, "omp", 0.7), *example.search(MODEL, "tamt-kd", 0.7, 0, save_at=(100,))):
        for seed in (0, 1):
            example.finetune(MODEL, "cola", ticket, seed)
    example.search(MODEL, "tamt-kd", 0.7, 1)
    return example


def why(found: Results, run: str) -> str:
    """Why a run was left out; it must be named once."""
    (reason,) = [item.why for item in found.skipped if item.run.startswith(run)]
    return reason


def set_score(folder: Path, score: float | None) -> None:
    content = json.loads((folder / "results.json").read_text())
    content["results"][0]["score"] = score
    (folder / "results.json").write_text(json.dumps(content))


def test_a_study_is_read_whole(study: ExampleStudy) -> None:
    found = read_results(study.folder)
    assert found.skipped == []
    assert found.version is not None
    along = [ticket for ticket in found.tickets if not ticket.final]
    assert [(t.method, t.step, t.steps, t.seed) for t in along] == [("tamt-kd", 100, 200, 0)]
    assert along[0].kd_loss is not None  # from metrics.jsonl
    assert along[0].seconds == pytest.approx(60.0)
    assert len(found.fine_tunings) == 6
    assert {item.ticket.step for item in found.fine_tunings if item.ticket} == {0, 100, 200}


def test_a_study_that_was_moved_is_read_the_same(study: ExampleStudy, tmp_path: Path) -> None:
    before = read_results(study.folder)
    study.folder.rename(tmp_path / "elsewhere")
    after = read_results(tmp_path / "elsewhere")
    assert after.skipped == []
    assert [item.score for item in after.fine_tunings] == [item.score for item in before.fine_tunings]
    assert all(item.ticket and item.ticket.mask and item.ticket.mask.is_file() for item in after.fine_tunings)


def test_linked_runs_are_read_as_if_they_were_there(study: ExampleStudy, tmp_path: Path) -> None:
    before = read_results(study.folder)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "other").symlink_to(study.folder / "search", target_is_directory=True)
    for number, folder in enumerate(sorted(study.folder.glob("finetune/*"))):
        (linked / f"a{number}").symlink_to(folder, target_is_directory=True)
    (linked / "loop").symlink_to(linked, target_is_directory=True)
    (linked / "nowhere").symlink_to(tmp_path / "nowhere")
    after = read_results(linked)
    assert after.skipped == []
    assert sorted(item.score for item in after.fine_tunings) == sorted(item.score for item in before.fine_tunings)
    assert all(item.ticket and item.ticket.run.startswith("other/") for item in after.fine_tunings)


def test_a_run_that_is_there_and_linked_is_read_once(study: ExampleStudy) -> None:
    before = read_results(study.folder)
    (study.folder / "a-link").symlink_to(study.folder / "search", target_is_directory=True)
    after = read_results(study.folder)
    assert [ticket.run for ticket in after.tickets] == [ticket.run for ticket in before.tickets]
    assert after.skipped == []


def test_means_are_those_of_the_runs(study: ExampleStudy) -> None:
    folders = sorted(study.folder.glob("finetune/*steps200_seed0_mask_n*"))
    tamt = [folder for folder in folders if "tamt-kd" in folder.name]
    omp = [folder for folder in folders if "omp" in folder.name]
    for folder, score in zip((*tamt, *omp), (0.5, 0.7, 0.4, 0.5), strict=True):
        set_score(folder, score)
    found = read_results(study.folder)
    rows = {row[2]: row[4] for row in scores_table(found).rows}
    assert rows["TAMT-KD"].mean == pytest.approx(60)
    assert rows["TAMT-KD"].std == pytest.approx(10 * 2**0.5)
    assert rows["TAMT-KD"].runs == 2
    (difference,) = differences_table(found).rows
    assert difference[3:6] == ("TAMT-KD", "OMP", pytest.approx(15))  # (50 − 40 + 70 − 50) / 2
    assert difference[8:] == (2, 1, "too few pairs (fewer than 5)")


def test_an_average_takes_only_runs_with_every_task(study: ExampleStudy) -> None:
    ticket = study.search(MODEL, "imp", 0.7)[0]
    for task, seeds in {"cola": (0, 1), "sst2": (1,)}.items():
        for seed in seeds:
            set_score(study.finetune(MODEL, task, ticket, seed), 0.5 if task == "cola" else 0.9)
    found = read_results(study.folder)
    scores = Scores(found, MODEL)
    imp = [t for t in found.tickets if t.method == "imp"]
    assert scores.of(imp, AVERAGE).runs == 1
    assert scores.of(imp, AVERAGE).mean == pytest.approx(70)
    assert scores.of([t for t in found.tickets if t.method == "omp"], AVERAGE) is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("results.json", "{", "damaged results.json"),
        ("results.json", '{"results": []}', "damaged results.json"),
        ("results.json", "\udcff", "damaged results.json"),
        ("results.json", '{"results": [{"task": "cola"}]}', "not from a fine-tuning"),
        ("results.json", '{"results": [{"score": null}]}', "no score"),
        ("results.json", None, "not finished"),
        ("config.yaml", "a: [", "damaged config.yaml"),
        ("config.yaml", "text", "damaged config.yaml"),
        ("config.yaml", "method: [omp]", "damaged config.yaml"),
    ],
)
def test_a_damaged_fine_tuning_is_named_and_left_out(study: ExampleStudy, name, content, reason) -> None:
    folder = sorted(study.folder.glob("finetune/*"))[0]
    before = (folder / name).read_text()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    if content and "null" in content:
        (folder / name).write_text(before)
        set_score(folder, None)
    if content and "task" in content:
        row = {"task": "cola", "score": 0.5, "method": "omp", "sparsity": 0.7}
        (folder / name).write_text(json.dumps({"results": [row]}))
    found = read_results(study.folder)
    assert reason in why(found, f"finetune/{folder.name}")
    assert len(found.fine_tunings) == 5


def test_a_truncated_mask_is_named_and_the_rest_compared(study: ExampleStudy) -> None:
    mask = study.folder / "search/tamt-kd_bert-base-uncased_s0.7_steps200_seed1/mask.safetensors"
    mask.write_bytes(mask.read_bytes()[:-9])
    found = read_results(study.folder)
    (group,) = compare_masks(found)
    assert group.labels == ["TAMT-KD 0", "OMP"]
    assert "is damaged" in why(found, "search/tamt-kd_bert-base-uncased_s0.7_steps200_seed1")


def test_scores_stay_where_masks_were_deleted(study: ExampleStudy) -> None:
    before = scores_table(read_results(study.folder)).rows
    mask = study.folder / "search/tamt-kd_bert-base-uncased_s0.7_steps200_seed1/mask.safetensors"
    mask.unlink()
    found = read_results(study.folder)
    assert scores_table(found).rows == before
    (group,) = compare_masks(found)
    assert group.labels == ["TAMT-KD 0", "OMP"]
    assert "not there any more" in why(found, "search/tamt-kd_bert-base-uncased_s0.7_steps200_seed1")


def test_runs_of_another_version_are_not_averaged_in(study: ExampleStudy) -> None:
    config = sorted(study.folder.glob("finetune/*"))[0] / "config.yaml"
    config.write_text(config.read_text().replace("# written by tamt ", "# written by tamt 9."))
    found = read_results(study.folder)
    assert "was written by tamt 9." in why(found, f"finetune/{config.parent.name}")
    assert len(found.fine_tunings) == 5


@pytest.mark.parametrize("settings", [{"lr": 1e-3}, {"epochs": 9}])
def test_fine_tunings_with_other_settings_are_not_averaged_in(study: ExampleStudy, settings) -> None:
    ticket = study.search(MODEL, "imp", 0.7)[0]
    folder = study.finetune(MODEL, "cola", ticket, 0, **settings)
    found = read_results(study.folder)
    (name,) = settings
    assert f"has {name} {settings[name]}" in why(found, f"finetune/{folder.name}")
    assert len(found.fine_tunings) == 6


def at_rates(study: ExampleStudy, mask: tuple[str, dict] | None, scores: dict[float, tuple[float | None, ...]]) -> None:
    """Fine-tunings of a mask on RTE at several learning rates, with these scores of the seeds 0, 1, …"""
    for rate, values in scores.items():
        for seed, score in enumerate(values):
            set_score(study.finetune(MODEL, "rte", mask, seed, lr=rate), score)


@pytest.fixture
def rated(study: ExampleStudy) -> ExampleStudy:
    """The study with two masks and the full model at two learning rates."""
    imp, rand = study.search(MODEL, "imp", 0.7)[0], study.search(MODEL, "rand", 0.7)[0]
    at_rates(study, None, {1e-4: (0.8, 0.9), 3e-4: (0.7, 0.7)})
    at_rates(study, imp, {1e-4: (0.6, 0.6), 3e-4: (0.9, 0.5)})
    at_rates(study, rand, {1e-4: (0.5, 0.5), 3e-4: (0.7, 0.1)})
    return study


def test_the_best_rate_of_each_mask_by_the_mean_over_seeds_counts(rated: ExampleStudy) -> None:
    found = read_results(rated.folder)
    assert found.skipped == []
    assert found.rates[MODEL, "rte"] == (1e-4, 3e-4)
    assert found.rates[MODEL, "cola"] == (None,)
    table = scores_table(found)
    means = {row[2]: row[table.columns.index("rte")].mean for row in table.rows if row[table.columns.index("rte")]}
    assert means == pytest.approx({"full model": 85, "IMP": 70, "random": 50})
    assert "best of 2 rates: 0.0001, 0.0003 for rte" in table.note
    assert len(found.other_rates) == 6
    rows = [dict(zip(runs_table(found).columns, row, strict=True)) for row in runs_table(found).rows]
    kept = {(row["method"], row["learning rate"], row["best rate"]) for row in rows if row["task"] == "rte"}
    assert ("IMP", 3e-4, "yes") in kept
    assert ("IMP", 1e-4, "no") in kept
    shown = {row[3] for row in settings_table(found).rows if row[1:3] == ("rte", "lr")}
    assert shown == {"best of 2 rates: 0.0001, 0.0003"}


def test_a_method_has_one_rate_for_all_its_masks(rated: ExampleStudy) -> None:
    # Alone, the first mask of rand is best at 1e-4 (0.5) and this one at 3e-4 (0.9); together 3e-4 is (0.57, not 0.43).
    at_rates(rated, rated.search(MODEL, "rand", 0.7, 1)[0], {1e-4: (0.3,), 3e-4: (0.9,)})
    found = read_results(rated.folder)
    rand = [item for item in found.fine_tunings if item.ticket and item.ticket.method == "rand" and item.task == "rte"]
    assert [(item.lr, item.score) for item in rand] == [(3e-4, 0.7), (3e-4, 0.1), (3e-4, 0.9)]


def test_a_rate_at_which_a_score_is_undefined_is_not_the_best(rated: ExampleStudy) -> None:
    at_rates(rated, rated.search(MODEL, "rand", 0.7, 1)[0], {1e-4: (0.3,), 3e-4: (None,)})
    found = read_results(rated.folder)
    rand = [item for item in found.fine_tunings if item.ticket and item.ticket.method == "rand" and item.task == "rte"]
    assert [(item.lr, item.score) for item in rand] == [(1e-4, 0.5), (1e-4, 0.5), (1e-4, 0.3)]
    assert [item.why for item in found.skipped] == ["has no score: its metric is undefined"]


def test_an_evaluation_that_is_no_number_is_named_and_left_out(study: ExampleStudy) -> None:
    study.write("evaluate/x", {"model": MODEL}, [{"model": MODEL, "mlm_loss": math.nan, "kd_loss": 0.25}])
    assert "is not from an evaluation (mlm_loss is nan" in why(read_results(study.folder), "evaluate/x")


def test_masks_with_other_rates_are_not_compared(rated: ExampleStudy) -> None:
    one = rated.search(MODEL, "rand", 0.7, 1)[0]
    at_rates(rated, one, {3e-4: (1.0,)})
    more = rated.search(MODEL, "rand", 0.7, 2)[0]
    at_rates(rated, more, {1e-4: (0.5,), 3e-4: (0.4,), 1e-3: (1.0,)})
    found = read_results(rated.folder)
    assert [item.why.split(" where")[0] for item in found.skipped] == ["has lr 0.0003", "has lr 0.001"]
    assert "most runs of rte have best of 2 rates: 0.0001, 0.0003; they are not compared" in found.skipped[0].why
    assert max(item.score for item in found.fine_tunings if item.task == "rte" and item.ticket) == 0.9
    assert {item.ticket.seed for item in found.fine_tunings if item.ticket and item.ticket.method == "rand"} == {0, 2}


def test_a_seed_that_a_rate_lacks_does_not_decide(rated: ExampleStudy) -> None:
    rand = rated.search(MODEL, "rand", 0.7, 1)[0]
    at_rates(rated, rand, {1e-4: (0.5,), 3e-4: (0.4, 1.0)})
    found = read_results(rated.folder)
    assert "has seed 1, which was not run at every rate" in found.skipped[0].why
    (only,) = [item for item in found.fine_tunings if item.ticket and item.ticket.method == "rand" and item.ticket.seed]
    assert (only.lr, only.score) == (1e-4, 0.5)


@pytest.mark.parametrize("usual", [{}, {"batch_size": 32}, {"batch_size": 4, "processes_of_step": 8}])
def test_runs_with_another_effective_batch_are_not_averaged_in(tmp_path: Path, usual) -> None:
    example = ExampleStudy(tmp_path / "study")
    ticket = example.search(MODEL, "omp", 0.7)[0]
    for seed, settings in enumerate((usual, {"batch_size": 32}, {"processes_of_step": 8})):
        folder = example.finetune(MODEL, "cola", ticket, seed, **settings)
    found = read_results(example.folder)
    assert "has effective batch 256 where most" in why(found, f"finetune/{folder.name}")
    assert [item.seed for item in found.fine_tunings] == [0, 1]
    assert ("cola", "effective batch", "32", "32, 16 for squad") in [row[1:] for row in settings_table(found).rows]


def test_a_default_that_is_written_out_is_the_same_setting(tmp_path: Path) -> None:
    example = ExampleStudy(tmp_path / "study")
    ticket = example.search(MODEL, "omp", 0.7)[0]
    task = TASKS["cola"]
    for seed, settings in enumerate(({}, {"epochs": task.epochs}, {"max_length": task.max_length}, {"epochs": 1})):
        example.finetune(MODEL, "cola", ticket, seed, **settings)
    found = read_results(example.folder)
    assert [item.seed for item in found.fine_tunings] == [0, 1, 2]
    assert [item.why for item in found.skipped] == [
        f"has epochs 1 where most runs of cola have epochs {task.epochs}; they are not averaged"
    ]


def test_regressions_that_start_elsewhere_are_not_averaged_in(tmp_path: Path) -> None:
    example = ExampleStudy(tmp_path / "study")
    ticket = example.search(MODEL, "omp", 0.7)[0]
    for task in ("stsb", "cola"):
        for seed, settings in enumerate(({}, {"regression_start": "zero"}, {"regression_start": "mean"})):
            example.finetune(MODEL, task, ticket, seed, **(settings if task == "stsb" else {}))
    found = read_results(example.folder)
    assert [item.why for item in found.skipped] == [
        "has regression_start mean where most runs of stsb have regression_start zero; they are not averaged"
    ]
    assert [key for _, task, _, key, _ in found.settings if key == "regression_start"] == ["regression_start"]


def test_searches_with_another_effective_batch_or_head_are_not_averaged_in(tmp_path: Path) -> None:
    example = ExampleStudy(tmp_path / "study")
    alike: list[dict] = [
        {"batch_size": 16},
        {"batch_size": 2, "processes_of_step": 8},
        {"batch_size": 4, "accumulation": 2, "processes_of_step": 2},
    ]
    others = [{"batch_size": 16, "processes_of_step": 8}, {"batch_size": 16, "head": "head.safetensors"}]
    for seed, settings in enumerate([*alike, *others]):
        example.search(MODEL, "tamt-mlm", 0.7, seed, **settings)
    found = read_results(example.folder)
    assert {ticket.seed for ticket in found.tickets} == {0, 1, 2}
    assert [item.why.split(" where")[0] for item in found.skipped] == [
        "has effective batch 128",
        "has head head.safetensors",
    ]


def test_searches_with_other_settings_go_with_their_fine_tunings(study: ExampleStudy) -> None:
    study.search(MODEL, "tamt-kd", 0.7, 2)
    ticket = study.search(MODEL, "tamt-kd", 0.7, 3, batch_size=4)[0]
    study.finetune(MODEL, "cola", ticket, 0)
    found = read_results(study.folder)
    assert {t.seed for t in found.tickets if t.method == "tamt-kd"} == {0, 1, 2}
    assert len(found.fine_tunings) == 6
    assert len(found.skipped) == 2


def test_other_lengths_of_search_are_apart(study: ExampleStudy) -> None:
    short = study.search(MODEL, "tamt-kd", 0.7, 0, steps=20)[0]
    set_score(study.finetune(MODEL, "cola", short, 0), 0.0)
    found = read_results(study.folder)
    means = {row[3]: row[4].mean for row in scores_table(found).rows if row[2] == "TAMT-KD"}
    assert means.keys() == {20, 200}
    assert means[20] == 0
    assert means[200] > 20
    figure = next(f for f in figures_of(found) if isinstance(f, Figure) and f.paper == "Fig. 3, 4")
    assert "TAMT-KD at 70 %: 200, not 20" in figure.caption


def two_models(folder: Path, *models: str) -> Results:
    """What is read of the same runs of two models, whose scores are 0.2 and 0.8."""
    for model, score in zip(models, (0.2, 0.8), strict=True):
        example = ExampleStudy(folder / f"study of {score}", (model,))
        ticket = example.search(model, "omp", 0.7)[0]
        set_score(example.finetune(model, "cola", ticket, 0), score)
    return read_results(folder)


def test_models_of_one_name_are_apart(tmp_path: Path) -> None:
    found = two_models(tmp_path, "/a/bert", "/b/bert")
    assert found.skipped == []
    assert sorted((row[4].mean, row[4].runs) for row in scores_table(found).rows) == [(20, 1), (80, 1)]
    assert all(re.fullmatch("bert-[0-9a-f]{8}", model) for model in found.models)
    assert {row[3] for row in settings_table(found).rows if row[2] == "model"} == {"/a/bert", "/b/bert"}


def test_a_name_of_the_hub_stays_as_it_is(tmp_path: Path) -> None:
    found = two_models(tmp_path, "bert", "/b/bert")
    assert found.models[0] == "bert"
    assert found.models[1].startswith("bert-")


def test_a_model_with_a_name_of_its_own_is_called_by_it(tmp_path: Path) -> None:
    assert two_models(tmp_path / "two", "/a/bert", "../roberta").models == ["bert", "roberta"]
    assert two_models(tmp_path / "one", "/a/bert", "/a/bert/").models == ["bert"]


def test_figures_of_two_models_are_in_files_of_their_own(tmp_path: Path) -> None:
    found = two_models(tmp_path, "org/bert", "org-bert")
    names = [figure.name for figure in figures_of(found) if isinstance(figure, Figure)]
    assert len(names) == len(set(names)) > 1
    assert len(set(suffixes(found.models).values())) == 2


def test_train_files_of_one_name_are_apart(study: ExampleStudy) -> None:
    ticket = study.search(MODEL, "imp", 0.7)[0]
    files = ("/a/d1/train.tsv", "/b/d1/train.tsv", "/a/d2/train.tsv", "/a/d2/other.tsv")
    for samples, file in enumerate(files, 1):
        study.finetune(MODEL, "classification", ticket, 0, 10 * samples, train_file=file)
    found = read_results(study.folder)
    tasks = sorted(item.task for item in found.fine_tunings if item.ticket and item.ticket.method == "imp")
    assert len(set(tasks)) == 4
    assert tasks[2:] == ["classification of d2", "classification of other"]
    assert all(re.fullmatch("classification of d1-[0-9a-f]{8}", task) for task in tasks[:2])
    shown = {row[1]: row[3] for row in settings_table(found).rows if row[2] == "train_file"}
    assert sorted(shown) == tasks
    assert sorted(shown.values()) == sorted(files)


def test_published_masks_of_one_sparsity_are_apart(study: ExampleStudy) -> None:
    for seed, name in enumerate(("/p1/mask.pt", "/p2/mask.pt", "/p1/mask.pt")):
        row = {"method": "published", "sparsity": 0.7, "seed": 0, "step": 0, "quality": 0.5}
        study.finetune(MODEL, "cola", (name, row), seed)
    found = read_results(study.folder)
    masks = {item.ticket.file: item.ticket for item in found.fine_tunings if item.ticket and item.ticket.file}
    assert set(masks) == {"/p1/mask.pt", "/p2/mask.pt"}
    scores = Scores(found, MODEL)
    assert {name: [*scores.runs(mask, "cola")] for name, mask in masks.items()} == {
        "/p1/mask.pt": [0, 2],
        "/p2/mask.pt": [1],
    }
    (series,) = scatter([(mask, 0.3) for mask in masks.values()], scores, "cola")
    assert {point.about.split(",")[0] for point in series.points} == {"p1/mask.pt", "p2/mask.pt"}


def test_a_copy_of_a_run_is_counted_once(study: ExampleStudy) -> None:
    folder = sorted(study.folder.glob("finetune/*"))[0]
    shutil.copytree(folder, study.folder / "finetune" / "zz-copy")
    found = read_results(study.folder)
    assert "repeats " in why(found, "finetune/zz-copy")
    assert len(found.fine_tunings) == 6


def test_fine_tunings_of_a_mask_that_was_found_twice_count_for_one(tmp_path: Path) -> None:
    example = ExampleStudy(tmp_path / "study")
    (mask, row) = example.search(MODEL, "omp", 0.7)[0]
    folder = Path(mask).parent
    shutil.copytree(folder, folder.with_name("zz-omp"))
    example.finetune(MODEL, "cola", (mask, row), 0)
    example.finetune(MODEL, "cola", (str(folder.with_name("zz-omp") / "mask.safetensors"), row), 1)
    found = read_results(example.folder)
    assert [item.why.split(" as ")[0] for item in found.skipped] == ["found the same mask"]
    assert [(item.seed, item.ticket) for item in found.fine_tunings] == [(0, found.tickets[0]), (1, found.tickets[0])]


def test_losses_on_other_dev_text_are_not_shown(study: ExampleStudy) -> None:
    study.search(MODEL, "imp", 0.7, dev_corpus=["other.txt"])
    found = read_results(study.folder)
    assert [t.kd_loss for t in found.tickets if t.method == "imp"] == [None]
    assert "other dev text" in why(found, "search/imp")


def test_the_time_of_a_resumed_search_is_not_known(study: ExampleStudy) -> None:
    metrics = next(study.folder.glob("search/tamt-kd*seed1")) / "metrics.jsonl"
    lines = [{"step": 50, "seconds": 40.0}, {"step": 50, "resumed": True}, {"step": 200, "seconds": 90.0}]
    damaged = '{"step": 250, "seconds": null}\n{"step": 2'
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + damaged)
    found = read_results(study.folder)
    assert [t.seconds for t in found.tickets if t.seed == 1] == [None]
    assert {seconds for curve in found.curves if curve.ticket.seed == 1 for _, seconds, _ in curve.points} <= {None}
    assert {item.why.split(",")[0] for item in found.skipped} == {
        "was interrupted and resumed",
        "has 2 damaged lines",
    }


@pytest.mark.parametrize(
    ("warm_up", "expected"),
    [
        ([], 92.0 / 20),
        ([{"step": 10, "head_warmup": 6.5}, {"step": 300, "head_warmup": 6.4}], (92.0 - 80.0) / 10),
    ],
)
def test_seconds_per_step_leave_a_head_warm_up_out(study: ExampleStudy, warm_up, expected) -> None:
    study.search(MODEL, "imp", 0.7, steps=20)
    log = next(study.folder.glob("search/imp*")) / "metrics.jsonl"
    steps = [{"step": 0, "dev_mlm_loss": 7.0}, {"step": 10, "seconds": 80.0}, {"step": 20, "seconds": 92.0}]
    log.write_text("".join(json.dumps(line) + "\n" for line in [*warm_up, *steps]))
    results = read_results(study.folder)
    (ticket,) = [ticket for ticket in results.tickets if ticket.method == "imp"]
    assert ticket.seconds_per_step == pytest.approx(expected)
    (row,) = [row for row in paper_table(results, [], []).rows if "seconds per step of IMP" in str(row[1])]
    assert row[3] == f"{expected:.3g}"


def test_masks_along_the_way_are_measured_by_evaluations(study: ExampleStudy) -> None:
    search = next(study.folder.glob("search/tamt-kd*seed0"))
    (search / "metrics.jsonl").unlink()
    mask = str(search / "masks/step-100.safetensors")
    row = {"model": MODEL, "method": "tamt-kd", "sparsity": 0.7, "mask": mask, "mask_seed": 0, "mask_step": 100}
    study.write("evaluate/x", {**TEXT, "model": MODEL, "mask": mask}, [{**row, "mlm_loss": 3.5, "kd_loss": 0.25}])
    found = read_results(study.folder)
    assert [(t.mlm_loss, t.kd_loss) for t in found.tickets if t.step == 100] == [(3.5, 0.25)]
    assert found.skipped == []


def test_masks_with_the_same_score_and_other_numbers_of_runs_are_drawn(study: ExampleStudy) -> None:
    for seed, scores in ((0, (0.5,)), (1, (0.5, 0.5))):
        ticket = study.search(MODEL, "imp", 0.7, seed)[0]
        for number, score in enumerate(scores):
            set_score(study.finetune(MODEL, "cola", ticket, number), score)
    found = read_results(study.folder)
    tickets = [(ticket, 0.3) for ticket in found.tickets if ticket.method == "imp"]
    (series,) = scatter(tickets, Scores(found, MODEL), "cola")
    assert sorted(point.runs for point in series.points) == [1, 2]


def test_settings_say_which_learning_rate_is_not_the_papers(study: ExampleStudy) -> None:
    note = settings_table(read_results(study.folder)).note
    assert "scores, dropout and learning rate of mask training without --recipe paper" in note


def test_searches_alone_without_losses_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = ExampleStudy(tmp_path / "study")
    monkeypatch.setattr(example, "losses", lambda *_: {})
    for method in ("omp", "rand"):
        example.search(MODEL, method, 0.7)
    assert main(["report", str(example.folder)]) == 0
    missing = [item.title for item in figures_of(read_results(example.folder)) if isinstance(item, Missing)]
    assert "Magnitude pruning and random subnetworks" in missing


def test_score_against_time_has_every_mask_and_the_front(study: ExampleStudy) -> None:
    tickets = [*study.search(MODEL, "omp", 0.5), *study.search(MODEL, "tamt-kd", 0.9, 1)]
    for ticket in (None, *tickets):
        study.finetune(MODEL, "cola", ticket, 0)
    for ticket in (None, *tickets, *study.search(MODEL, "omp", 0.7)):
        study.bench(MODEL, ticket)
    study.bench("of-nobody", ("search/gone/mask.safetensors", {"sparsity": 0.5}))
    other = study.bench(MODEL, study.search(MODEL, "rand", 0.5)[0], cpu="another CPU")
    found = read_results(study.folder)
    assert why(found, f"bench/{other.name}") == (
        "was measured on another CPU, most others on a CPU; their times are not compared"
    )
    assert why(found, "bench/of-nobody") == "measures a mask whose search is not below the folder"
    figure = by_latency(found, MODEL, Scores(found, MODEL))
    assert isinstance(figure, Figure)
    assert [panel.x_label for panel in figure.panels] == [
        f"ms per forward pass (1 × {tokens} tokens, 1 thread)" for tokens in (8, 128)
    ]
    front, *series = figure.panels[0].series
    assert [(each.label, len(each.points)) for each in series] == [("TAMT-KD", 1), ("OMP", 2), ("full model", 1)]
    assert "sparse, 52.0 MB" in series[0].points[0].about
    marks = [point for each in series for point in each.points]
    undominated = [p for p in marks if not any(q.x < p.x and q.y >= p.y for q in marks)]
    assert [(p.x, p.y) for p in front.points] == sorted((p.x, p.y) for p in undominated)
    table = latencies_table(found)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[0]["method"] == "full model"
    assert rows[0]["times as fast"] == 1
    assert {row["runs"] for row in rows if row["sparsity"] == 0.9} == {"sparse"}
    assert len(rows) == 2 * 4


def test_times_are_those_of_the_masks_whose_scores_are_shown(study: ExampleStudy) -> None:
    for steps in (50, 400):
        for ticket in study.search(MODEL, "tamt-kd", 0.7, 0, steps=steps, save_at=(steps // 2,)):
            study.finetune(MODEL, "cola", ticket, 0)
            study.bench(MODEL, ticket)
    found = read_results(study.folder)
    final = {item.ticket.steps: item.milliseconds for item in found.latencies if item.ticket.final and item.tokens == 8}
    rows = [dict(zip(latencies_table(found).columns, row, strict=True)) for row in latencies_table(found).rows]
    rows = [row for row in rows if row["rows × tokens"].startswith("1 × 8")]
    assert {row["steps"]: row["ms"].mean for row in rows} == final
    assert [(row["ms"].runs, row["score"].runs) for row in rows] == [(1, 1), (1, 1)]


def test_masks_of_whole_layers_have_no_figure_by_layer(study: ExampleStudy) -> None:
    group = MaskGroup(MODEL, 0.5, differences={("tamt-kd", "layers:0.5"): {"layers": 0.5}})
    found = mask_figures(read_results(study.folder), [group])
    assert [item.title for item in found if isinstance(item, Missing)][-2:] == [
        "Mask similarity by layer",
        "Where masks differ from OMP",
    ]


def test_nothing_to_report_is_refused(tmp_path: Path, capsys, study: ExampleStudy) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(study.folder / "search", unfinished)
    for file in unfinished.rglob("results.json"):
        file.unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for words, message in (
        ([str(tmp_path / "none")], "there is no folder"),
        ([str(tmp_path / "empty")], "no finished run was found"),
        ([str(unfinished)], "is not finished"),
        ([str(study.folder), "--output", str(tmp_path / "mine")], "nothing in it is overwritten"),
        ([], "folder"),
    ):
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_only_unusable_runs_are_refused(study: ExampleStudy) -> None:
    for file in study.folder.rglob("results.json"):
        file.write_text('{"results": [{}]}')
    with pytest.raises(UserError, match="can be used"):
        read_results(study.folder)


@pytest.mark.parametrize("kind", ["evaluate", "bench"])
def test_measurements_of_the_full_model_alone_are_refused(kind: str, tmp_path: Path) -> None:
    example = ExampleStudy(tmp_path)
    if kind == "bench":
        example.bench(MODEL, None)
    else:
        example.write("evaluate/full", {"model": MODEL, **TEXT}, [{"mask": None, "mlm_loss": 2.0, "kd_loss": 0.0}])
    with pytest.raises(UserError, match="no search or fine-tuning was found in .*, only other runs; give the folder"):
        read_results(tmp_path)


def test_figures_without_runs_say_what_they_need(study: ExampleStudy) -> None:
    missing = {f.paper: f.needs for f in figures_of(read_results(study.folder)) if isinstance(f, Missing)}
    assert "--initial random" in missing["Fig. 7"]
    assert "--train-samples" in missing["Fig. 9"]
    assert "two models" in missing["Fig. 11"]
    assert "rand" in missing["Fig. 1, 10"]


def test_searches_that_start_from_other_scores_are_told_apart(tmp_path: Path) -> None:
    study = ExampleStudy(tmp_path / "study", ("m",))
    for number, settings in enumerate(
        [
            {"initial": None},
            {"initial": None, "scores": "activation"},
            {"initial": None, "recipe": "paper"},
            {"initial": "random", "scores": "magnitude"},
        ]
    ):
        masks = study.search("m", "tamt-kd", 0.7, seed=number, **settings)
        study.finetune("m", "cola", masks[-1], number)
    read = read_results(study.folder)
    found = {ticket.seed: label_of(ticket.method, ticket.variant) for ticket in read.tickets}
    assert found == {
        0: "TAMT-KD, activation scores",
        1: "TAMT-KD, activation scores",
        2: "TAMT-KD, two-valued scores",
        3: "TAMT-KD, random start, magnitude scores",
    }
    assert not read.skipped
    labels = {row[2] for row in scores_table(read).rows}
    assert labels == set(found.values())


def test_scores_are_not_named_where_all_searches_share_them(tmp_path: Path) -> None:
    study = ExampleStudy(tmp_path / "study", ("m",))
    for seed, settings in enumerate(
        [{"initial": None, "scores": "two-valued"}, {"initial": "omp"}, {"initial": "random"}]
    ):
        study.search("m", "tamt-kd", 0.7, seed=seed, **settings)
    found = {ticket.seed: ticket.variant for ticket in read_results(study.folder).tickets}
    assert found == {0: None, 1: None, 2: "random start"}


def test_searches_with_another_text_recipe_or_dropout_are_not_averaged(tmp_path: Path) -> None:
    study = ExampleStudy(tmp_path / "study", ("m",))
    for seed in (0, 1, 2):
        study.search("m", "wanda", 0.7, seed=seed, corpus=["demo"] if seed else ["other.txt"])
        recipe = "short" if seed else "paper"
        study.search("m", "tamt-kd", 0.7, seed=seed, initial=None, scores="two-valued", recipe=recipe)
        study.search("m", "tamt-mlm", 0.7, seed=seed, initial=None, dropout=None if seed else "model")
    read = read_results(study.folder)
    assert sorted((ticket.method, ticket.seed) for ticket in read.tickets) == [
        *(("tamt-kd", seed) for seed in (1, 2)),
        *(("tamt-mlm", seed) for seed in (1, 2)),
        *(("wanda", seed) for seed in (1, 2)),
    ]
    assert {item.why.split(" where")[0] for item in read.skipped} == {
        "has recipe paper",
        "has dropout model",
        "has corpus other.txt",
    }
