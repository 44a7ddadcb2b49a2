"""The sweep itself: what is done, skipped, redone and refused, with commands that take no time."""

import csv
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from filelock import lock_descriptor

from tamt.cli import main
from tamt.commands.bench import bench
from tamt.commands.evaluate import evaluate
from tamt.finetuning.finetune import finetune
from tamt.masks.file import MaskInfo, save_masks
from tamt.runtime.errors import UserError
from tamt.search.train import train
from tamt.sweep import runs
from tamt.sweep.table import summary
from tamt.training.precision import choose_precision
from tamt.training.run_folder import RunFolder

STUDY = {
    "models": "demo",
    "methods": ["tamt-kd", "imp", "omp"],
    "sparsities": [0.5, 0.7],
    "corpus": "demo",
    "search": {"save_at": [1000]},
    "tasks": "demo",
    "finetune_seeds": [0, 1],
}
RUNS = 5 + 2 + 1 + (2 + 2 + 2 + 2 + 1) * 2  # - 1 search, as IMP's serves two sparsities


class Commands:
    """The three commands as fakes that write what the real ones write, and the runs that they were called for."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.failing: dict[str, Exception | type[BaseException]] = {}

    def _start(self, output: Path, settings: dict) -> RunFolder:
        path = f"{output.parent.name}/{output.name}"
        self.called.append(path)
        settings["precision"] = choose_precision(settings.get("precision", "auto"))
        folder = RunFolder(output, settings, resume=True)
        if path in self.failing:
            raise self.failing[path]
        return folder

    def train(self, output: Path, resume: bool, **settings) -> dict:
        with self._start(output, {**settings, "output": output}) as folder:
            method, sparsity, seed = settings["method"], settings["sparsity"], settings.get("seed", 0)
            files = {"mask.safetensors": sparsity} | {
                f"masks/step-{s}.safetensors": sparsity for s in settings.get("save_at", [])
            }
            if method == "imp":
                files = {"masks/sparsity-0.5.safetensors": 0.5} | files
            rows = []
            for file, reached in files.items():
                info = MaskInfo("demo", method, reached, seed, 0)
                save_masks(output / file, {"w": torch.ones(2, 2, dtype=torch.bool)}, info)
                rows.append({"kd_loss": reached, "mlm_loss": 2.0, "seconds": 3.0, "mask": str(output / file)})
            # As the real one does it: mask training tells of its last mask only.
            results = {"results": rows if method == "imp" else rows[:1]}
            folder.finish(results)
        return results

    def finetune(self, output: Path, resume: bool, **settings) -> dict:
        with self._start(output, {**settings, "output": output}) as folder:
            (output / "model").mkdir()
            (output / "model" / "weights").write_text("large")
            score = 0.5 + settings["seed"] / 10
            results = {"results": [{"metric": "accuracy", "score": score, "seconds": 2.0, "dev": {"accuracy": score}}]}
            folder.finish(results)
        return results

    def evaluate(self, **settings) -> dict:
        self.called.append("evaluate")
        precision = choose_precision(settings.get("precision", "auto"))
        return {"results": [{"kd_loss": 0.1, "mlm_loss": None, "precision": precision, "seconds": 1.0}]}

    def bench(self, **settings) -> dict:
        self.called.append("bench")
        row = {"batch_size": 1, "threads": 1, "precision": "fp32", "fastest": "sparse"}
        return {"results": [{**row, "tokens": tokens, "fastest_ms": 2.0, "megabytes": 9.0} for tokens in (8, 32)]}


def as_if(real: Callable[..., dict], fake: Callable[..., dict]) -> Callable[..., dict]:
    """The fake, with the signature of the real one."""

    @functools.wraps(real)
    def call(**settings) -> dict:
        return fake(**settings)

    return call


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    fakes = Commands()
    for kind, real, fake in (("search", train, fakes.train), ("finetune", finetune, fakes.finetune)):
        monkeypatch.setitem(runs.COMMANDS, kind, as_if(real, fake))
    monkeypatch.setitem(runs.COMMANDS, "evaluate", as_if(evaluate, fakes.evaluate))
    monkeypatch.setitem(runs.COMMANDS, "bench", as_if(bench, fakes.bench))
    return fakes


@pytest.fixture
def sweep(tmp_path: Path, commands: Commands) -> Callable[..., int]:
    """Run the study, with changes, and give the exit code."""

    def call(*options: str, **changes) -> int:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
        commands.called.clear()
        return main(["sweep", str(tmp_path / "study.yaml"), *options])

    return call


def table(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "study" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_runs_are_done_once_and_their_results_are_in_one_table(sweep, commands, tmp_path, capsys) -> None:
    assert sweep("--json") == 0
    out, err = capsys.readouterr()
    assert len(commands.called) == RUNS
    assert f"run {RUNS} of {RUNS}" in err
    rows = table(tmp_path)
    masks = [row for row in rows if row["kind"] == "mask"]
    assert [(row["method"], row["sparsity"], row["step"], row["kd_loss"]) for row in masks] == [
        ("tamt-kd", "0.5", "", "0.5"),
        ("tamt-kd", "0.5", "1000", "0.1"),
        ("tamt-kd", "0.7", "", "0.7"),
        ("tamt-kd", "0.7", "1000", "0.1"),
        ("imp", "0.5", "", "0.5"),
        ("imp", "0.7", "", "0.7"),
        ("omp", "0.5", "", "0.5"),
        ("omp", "0.7", "", "0.7"),
        ("full", "0.0", "", "0.1"),
    ]
    assert masks[4]["mask"] == "search/imp_demo_s0.7_seed0/masks/sparsity-0.5.safetensors"
    assert all((tmp_path / "study" / row["mask"]).is_file() for row in masks[:-1])
    tuned = [row for row in rows if row["kind"] == "finetune"]
    assert {(row["task"], row["seed"], row["score"], row["dev_accuracy"]) for row in tuned} == {
        ("demo", "0", "0.5", "0.5"),
        ("demo", "1", "0.6", "0.6"),
    }
    assert len(tuned) == 18
    assert not list((tmp_path / "study").glob("finetune/*/model"))
    printed = json.loads(out)
    assert printed["failed"] == []
    assert printed["results"][0]["demo"] == "0.5500 ± 0.0707 (2)"
    before = (tmp_path / "study" / "results.csv").read_bytes()
    assert sweep() == 0
    assert commands.called == []
    assert (tmp_path / "study" / "results.csv").read_bytes() == before


def test_time_is_measured_once_where_a_study_asks_for_it(sweep, commands, tmp_path, capsys) -> None:
    changes = {"methods": ["omp"], "search": {}, "tasks": [], "bench": {"tokens": [8, 32]}}
    assert sweep(**changes) == 0
    assert commands.called.count("bench") == 3  # two sparsities and the full model
    assert json.loads((tmp_path / "study/bench/omp_demo_s0.5/results.json").read_text())["results"][1]["tokens"] == 32
    assert [row["megabytes"] for row in table(tmp_path) if row["kind"] == "bench"] == ["9.0"] * 6
    assert sweep(**changes) == 0
    assert commands.called == []
    assert sweep(**changes | {"bench": {"tokens": [8, 16]}}) == 2
    assert "bench/omp_demo_s0.5 was started with tokens = [8, 32], not [8, 16]" in capsys.readouterr().err


def test_the_summary_takes_the_best_of_the_same_rates() -> None:
    ticket = {"model": "m", "sparsity": 0.7, "initial": None, "steps": None, "step": None}
    scores = {
        ("omp", None): {1e-4: (0.5, 0.5), 3e-4: (0.9, 0.3)},
        ("kd", 0): {1e-4: (0.7, 0.7), 3e-4: (0.8, 0.4)},
        ("kd", 1): {1e-4: (0.1, 0.1), 3e-4: (0.6, 0.6)},
        ("kd", 2): {3e-4: (0.6, 0.6), 1e-4: (0.1, 0.1)},
        ("rand", 0): {3e-4: (0.2, 0.2)},
        ("imp", 0): {1e-4: (0.1, 0.1), 3e-4: (None, 0.9)},
    }
    rows = [
        {"kind": "finetune", **ticket, "method": method, "mask_seed": mask, "task": "rte", "train_samples": None}
        | {"lr": rate, "seed": seed, "score": score}
        for (method, mask), by_rate in scores.items()
        for rate, values in by_rate.items()
        for seed, score in enumerate(values)
    ]
    found = {row["method"]: row for row in summary(rows)}
    both = "rte (best of 2 rates: 0.0001, 0.0003)"
    assert found["omp"][both].startswith("0.6000")
    assert found["kd"][both].startswith("0.6000")  # one rate for all masks, though 1e-4 is better for one
    assert found["kd"][both].endswith("(6)"), "the order in which rates were given makes no difference"
    assert found["imp"][both].startswith("0.1000"), "an undefined score is below all others"
    assert found["rand"][both] is None, "one rate is not compared with the best of two"
    assert found["rand"]["rte (0.0003)"].startswith("0.2000")


def test_precisions_are_never_averaged(sweep, tmp_path, capsys, monkeypatch) -> None:
    changes = {"methods": ["tamt-kd", "rand"], "sparsities": 0.5, "finetune_seeds": [0]}
    monkeypatch.setenv("TAMT_PRECISION", "fp32")
    assert sweep("--json", **changes) == 0
    alone = json.loads(capsys.readouterr().out)["results"]
    assert {row["demo"] for row in alone} == {"0.5000"}, "one precision needs no name"
    monkeypatch.setenv("TAMT_PRECISION", "bf16")
    assert sweep("--json", **changes, mask_seeds=[0, 1, 2]) == 0
    out, err = capsys.readouterr()
    assert "set TAMT_PRECISION=fp32" in err.replace("\n", " ")
    rows = {(row["method"], row["step"], row["mask_precision"]): row for row in json.loads(out)["results"]}
    assert rows["tamt-kd", None, "fp32"]["demo (fp32)"] == "0.5000"
    assert rows["tamt-kd", None, "fp32"]["demo (bf16)"] is None
    assert rows["tamt-kd", None, "bf16"]["demo (bf16)"] == "0.5000 ± 0.0000 (2)"
    assert rows["tamt-kd", None, "bf16"]["kd_loss (bf16)"] == 0.5
    assert rows["rand", None, None]["demo (bf16)"] == "0.5000 ± 0.0000 (2)", "no search of random masks is trained"
    found = {(row["mask_seed"], row["mask_precision"], row["precision"]) for row in table(tmp_path) if row["step"]}
    assert found == {("0", "fp32", "fp32"), ("1", "bf16", "bf16"), ("2", "bf16", "bf16")}
    assert sweep("--dry-run", **changes, mask_seeds=[0, 1, 2]) == 0
    assert "TAMT_PRECISION" not in capsys.readouterr().err, "nothing is left to do"


def test_models_are_kept_where_asked_for(sweep, tmp_path) -> None:
    assert sweep(keep_models=True) == 0
    assert len(list((tmp_path / "study").glob("finetune/*/model/weights"))) == 18
    assert sweep(keep_models=False) == 0  # of what this study does from now on
    assert len(list((tmp_path / "study").glob("finetune/*/model/weights"))) == 18


def test_a_study_says_that_models_are_gone_which_it_is_to_keep_now(sweep, commands, tmp_path, capsys) -> None:
    changes = {"methods": "omp", "sparsities": 0.5, "search": {}}
    assert sweep(**changes) == 0
    assert "keep_models" not in capsys.readouterr().err
    assert sweep(**changes, keep_models=True) == 0
    assert commands.called == []
    err = capsys.readouterr().err.replace("\n", " ")
    assert "4 finished fine-tunings kept no model, finetune/demo_omp_demo_s0.5_seed0 the first" in err
    (tmp_path / "study/finetune/demo_omp_demo_s0.5_seed0").rename(tmp_path / "away")
    assert sweep(**changes, keep_models=True) == 0
    assert commands.called == ["finetune/demo_omp_demo_s0.5_seed0"]
    assert "3 finished fine-tunings kept no model" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("file", ["config.json", "config.yaml", "results.csv"])
def test_a_study_is_not_run_into_a_model_or_a_run(file, sweep, commands, tmp_path, capsys) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / file).write_text("mine")
    for dry in (["--dry-run"], []):
        assert sweep(*dry) == 2
        assert f"holds a {file} and no study; give another --output" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in (tmp_path / "study").iterdir()] == [file]
    assert sweep("--output", str(tmp_path / "study" / "runs")) == 0


def test_a_second_study_in_a_folder_leaves_the_rows_of_the_first(sweep, commands, tmp_path) -> None:
    changes = {"sparsities": 0.5, "search": {}}
    assert sweep(methods="omp", **changes, bench={"tokens": [8]}) == 0
    first = table(tmp_path)
    assert sweep(methods="tamt-kd", **changes) == 0
    both = table(tmp_path)
    omp = [row for row in first if row["method"] == "omp" or row["kind"] == "bench"]
    assert [row for row in both if row["method"] == "omp" or row["kind"] == "bench"] == omp
    assert [row["method"] for row in both if row["kind"] == "finetune"] == ["tamt-kd"] * 2 + ["full"] * 2 + ["omp"] * 2
    shutil.rmtree(tmp_path / "study/finetune/demo_omp_demo_s0.5_seed0")
    assert sweep(methods="tamt-kd", **changes) == 0
    assert len(table(tmp_path)) == len(both) - 1, "a run that is gone has no row"


def test_a_larger_study_does_what_is_new(sweep, commands) -> None:
    assert sweep() == 0
    assert sweep(methods=["tamt-kd", "imp", "omp", "rand"], finetune_seeds=[0, 1, 2]) == 0
    assert len(commands.called) == 2 + 2 * 3 + 9
    assert sweep(search={"save_every": 7}) == 0  # the masks along the way are no longer asked for, and do no harm
    assert commands.called == []


def test_a_failing_run_stops_no_other(sweep, commands, tmp_path, capsys) -> None:
    commands.failing = {
        "search/omp_demo_s0.7": UserError("the disk is full; empty it"),
        "finetune/demo_full_demo_seed1": RuntimeError("out of memory\nand more"),
    }
    assert sweep() == 1
    err = capsys.readouterr().err
    assert "failed: search/omp_demo_s0.7: the disk is full; empty it" in err
    assert "not run: finetune/demo_omp_demo_s0.7_seed0, which needs search/omp_demo_s0.7" in err
    assert "failed: finetune/demo_full_demo_seed1: RuntimeError: out of memory (traceback in " in err
    assert "Traceback" not in err
    complaint = tmp_path / "study" / "errors" / "finetune_demo_full_demo_seed1.txt"
    assert "and more" in complaint.read_text()
    assert f"{RUNS - 4} of {RUNS} runs done" in err
    commands.failing = {}
    assert sweep() == 0
    assert len(commands.called) == 4
    assert not complaint.exists()


def test_a_study_of_which_no_run_succeeds_shows_no_results(sweep, commands, capsys) -> None:
    commands.failing = {"search/omp_demo_s0.5": UserError("the disk is full; empty it")}
    assert sweep(methods="omp", sparsities=0.5, search={}, full_model=False) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "failed: search/omp_demo_s0.5: the disk is full; empty it" in captured.err


def test_dry_run_tells_and_writes_nothing(sweep, commands, tmp_path, capsys) -> None:
    assert sweep("--dry-run", "--json") == 0
    assert not (tmp_path / "study").exists()
    rows = json.loads(capsys.readouterr().out)["results"]
    assert len(rows) == RUNS
    assert {(row["state"], row["time"]) for row in rows} == {("new", "unknown")}
    assert sweep("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(row["run"] in line for line in lines) for row in rows)
    commands.failing = {"finetune/demo_imp_demo_s0.5_mask0_seed0": KeyboardInterrupt}
    assert sweep() == 130
    err = capsys.readouterr().err
    assert "stopped with 16 of 26 runs done" in err.replace("\n", " ")
    assert "repeat the command to continue" in err
    assert len([row for row in table(tmp_path) if row["kind"] == "finetune"]) == 8
    before = sorted((tmp_path / "study").rglob("*"))
    assert sweep("--dry-run", "--json") == 0
    out, err = capsys.readouterr()
    rows = {row["run"]: (row["state"], row["time"]) for row in json.loads(out)["results"]}
    assert rows["search/imp_demo_s0.7_seed0"] == ("done", "–")
    assert rows["finetune/demo_imp_demo_s0.5_mask0_seed0"] == ("to resume", "2 s")
    assert rows["finetune/demo_full_demo_seed0"] == ("new", "2 s")
    assert "26 runs in" in err
    assert "16 done" in err
    assert "20 s left" in err
    assert sorted((tmp_path / "study").rglob("*")) == before
    commands.failing = {}
    assert sweep() == 0
    assert len(commands.called) == RUNS - 16


# What is there already, but cannot be taken as it is


def damage_mask(folder: Path) -> None:
    mask = folder / "masks" / "sparsity-0.5.safetensors"
    mask.write_bytes(mask.read_bytes()[:-1])


def halve_results(folder: Path) -> None:
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    "damage",
    [
        damage_mask,
        halve_results,
        lambda folder: (folder / "config.yaml").unlink(),
        lambda folder: (folder / "config.yaml").write_text("a: [\n"),
    ],
)
def test_a_damaged_search_is_moved_aside_and_done_again_with_what_was_made_from_it(
    damage, sweep, commands, tmp_path, capsys
) -> None:
    assert sweep() == 0
    before = table(tmp_path)
    folder = tmp_path / "study" / "search" / "imp_demo_s0.7_seed0"
    damage(folder)
    left = {path.name for path in folder.iterdir()}
    assert sweep() == 0
    err = capsys.readouterr().err
    assert "search/imp_demo_s0.7_seed0 has " in err
    assert "was made from a mask of search/imp_demo_s0.7_seed0" in err
    assert len(commands.called) == 1 + 2 * 2
    assert all("imp" in path for path in commands.called)
    assert {path.name for path in (tmp_path / "study/aside/search/imp_demo_s0.7_seed0").iterdir()} == left
    assert len(list((tmp_path / "study/aside/finetune").iterdir())) == 4
    assert table(tmp_path) == before


def test_deleted_masks_are_searched_again_only_where_a_run_needs_them(sweep, commands, tmp_path, capsys) -> None:
    assert sweep() == 0
    study = tmp_path / "study"
    before = table(tmp_path)
    for mask in study.glob("search/*/**/*.safetensors"):
        mask.unlink()
    commands.called.clear()
    assert sweep() == 0
    assert commands.called == []
    shutil.rmtree(study / "finetune" / "demo_imp_demo_s0.5_mask0_seed0")
    assert sweep() == 0
    assert commands.called[0] == "search/imp_demo_s0.7_seed0"
    assert all("imp" in path for path in commands.called)
    assert table(tmp_path) == before


def test_what_is_moved_aside_twice_is_there_twice(sweep, tmp_path) -> None:
    for _ in range(3):
        assert sweep() == 0
        halve_results(tmp_path / "study" / "finetune" / "demo_full_demo_seed0")
    found = sorted(path.name for path in (tmp_path / "study/aside/finetune").iterdir())
    assert found == ["demo_full_demo_seed0", "demo_full_demo_seed0.2"]


def test_a_damaged_checkpoint_is_moved_aside(sweep, commands, tmp_path) -> None:
    commands.failing = {"finetune/demo_full_demo_seed1": KeyboardInterrupt}
    assert sweep() == 130
    folder = tmp_path / "study" / "finetune" / "demo_full_demo_seed1"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-1.checkpoint").write_bytes(b"half")
    commands.failing = {}
    assert sweep() == 0
    assert (tmp_path / "study/aside/finetune/demo_full_demo_seed1/checkpoints/step-1.checkpoint").is_file()
    assert (folder / "results.json").is_file()


def test_runs_with_other_settings_are_refused_or_redone_aside(sweep, commands, tmp_path, capsys) -> None:
    assert sweep() == 0
    capsys.readouterr()
    other = {"search": {"save_at": [1000], "imp": {"lr": 1e-4}}}
    assert sweep(**other) == 2
    err = capsys.readouterr().err
    assert "search/imp_demo_s0.7_seed0 was started with lr = None, not 0.0001; continue with the same study" in err
    assert err.count("\n") == 1
    assert commands.called == []
    assert sweep("--dry-run", "--json", **other) == 0
    rows = {row["run"]: row["state"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert rows["search/imp_demo_s0.7_seed0"] == "refused: was started with lr = None, not 0.0001"
    assert rows["finetune/demo_imp_demo_s0.7_mask0_seed0"].startswith("to redo: was made from a mask of")
    assert sweep("--redo", **other) == 0
    assert len(commands.called) == 1 + 2 * 2
    assert (tmp_path / "study/aside/search/imp_demo_s0.7_seed0/results.json").is_file()
    assert sweep(finetune={"epochs": 2}, **other) == 2
    assert "was started with epochs = None, not 2, and 17 others do not fit either" in capsys.readouterr().err


def test_runs_of_another_version_are_refused(sweep, commands, tmp_path, capsys) -> None:
    assert sweep() == 0
    config = tmp_path / "study" / "finetune" / "demo_full_demo_seed0" / "config.yaml"
    config.write_text(config.read_text().replace("# written by tamt ", "# written by tamt 9"))
    assert sweep() == 2
    assert "finetune/demo_full_demo_seed0 was started by tamt 9" in capsys.readouterr().err
    assert sweep("--redo") == 0
    assert commands.called == ["finetune/demo_full_demo_seed0"]


def test_what_was_made_from_a_mask_that_is_gone_is_made_again(sweep, commands, tmp_path) -> None:
    assert sweep() == 0
    (tmp_path / "study/search/omp_demo_s0.5").rename(tmp_path / "gone")
    assert sweep() == 0
    assert commands.called == ["search/omp_demo_s0.5"] + [f"finetune/demo_omp_demo_s0.5_seed{seed}" for seed in (0, 1)]


def test_a_study_can_be_moved(sweep, commands, tmp_path) -> None:
    assert sweep() == 0
    (tmp_path / "study").rename(tmp_path / "elsewhere")
    assert sweep("--output", str(tmp_path / "elsewhere")) == 0
    assert commands.called == []


def test_a_study_can_be_moved_with_its_model_and_texts(commands, tiny_bert, tmp_path, capsys) -> None:
    place, moved = tmp_path / "place", tmp_path / "further" / "moved"
    shutil.copytree(tiny_bert, place / "bert")
    for name in ("text.txt", "more.txt", "rows.tsv"):
        (place / name).write_text("a\n")
    own = {"task": "classification", "train_file": "rows.tsv", "dev_file": "rows.tsv"}
    study = {**STUDY, "models": "bert", "corpus": ["text.txt", "more.txt"], "dev_corpus": "text.txt", "search": {}}
    study |= {"methods": ["tamt-kd", "omp"], "tasks": {"mine": own}, "bench": {"tokens": [8]}}
    (place / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["sweep", str(place / "study.yaml")]) == 0
    moved.parent.mkdir()
    place.rename(moved)
    commands.called.clear()
    assert main(["sweep", str(moved / "study.yaml")]) == 0
    assert commands.called == []
    shutil.copytree(tiny_bert, moved / "other" / "bert")
    (moved / "study.yaml").write_text(yaml.safe_dump({**study, "models": "other/bert"}))
    capsys.readouterr()
    assert main(["sweep", str(moved / "study.yaml")]) == 2
    assert "was started with model = " in capsys.readouterr().err.replace("\n", " ")


def test_runs_that_took_no_time_can_be_forecast(sweep, tmp_path, capsys) -> None:
    folder = tmp_path / "study" / "search" / "omp_demo_s0.5"
    assert sweep(methods="omp", sparsities=0.5, search={}, tasks={}, full_model=False) == 0
    results = json.loads((folder / "results.json").read_text())
    results["results"][0]["seconds"] = 0.0
    (folder / "results.json").write_text(json.dumps(results))
    assert sweep("--dry-run", methods="omp", sparsities=[0.5, 0.7], search={}, tasks={}, full_model=False) == 0
    assert "0% of the time" in capsys.readouterr().err


def test_measurements_without_a_time_of_their_own_have_an_unknown_forecast(sweep, capsys) -> None:
    changes = {"methods": "omp", "search": {}, "tasks": {}, "full_model": False, "bench": {"tokens": 8}}
    assert sweep(sparsities=0.5, **changes) == 0
    assert sweep("--dry-run", "--json", sparsities=[0.5, 0.7], **changes) == 0
    times = {row["run"]: row["time"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["results"]}
    assert times["search/omp_demo_s0.7"] == "3 s"
    assert times["bench/omp_demo_s0.7"] == "unknown"


def test_two_sweeps_do_not_share_a_folder(sweep, commands, tmp_path, capsys) -> None:
    assert sweep() == 0
    with (tmp_path / "study" / ".sweep.lock").open("wb") as file:
        assert lock_descriptor(file.fileno(), blocking=False)
        assert sweep() == 2
    assert "another sweep is at work in" in capsys.readouterr().err
    assert sweep() == 0


def test_the_table_is_written_while_the_study_goes_on(sweep, commands, tmp_path) -> None:
    (tmp_path / "study").mkdir()
    seen = []
    tune = commands.finetune

    def looking(*arguments, **settings) -> dict:
        seen.append(len(table(tmp_path)))
        return tune(*arguments, **settings)

    runs.COMMANDS["finetune"] = as_if(finetune, looking)
    assert sweep() == 0
    assert seen == list(range(9, 27))


def test_settings_that_do_not_go_together_are_refused_before_anything_runs(sweep, commands, capsys) -> None:
    together = {"compile": True, "activation_checkpointing": True}
    assert sweep("--dry-run", search=together) == 2
    err = capsys.readouterr().err.replace("\n", " ")
    assert "study.yaml: search/tamt-kd_demo_s0.5_seed0 cannot run: --compile and --activation-checkpointing" in err
    assert sweep(search={}, finetune={"sparse": "on"}) == 2
    assert "finetune/demo_full_demo_seed0 cannot run: --sparse on needs a --mask" in capsys.readouterr().err
    assert commands.called == []


def test_mistakes_on_the_command_line(sweep, tmp_path, capsys) -> None:
    assert main(["sweep"]) == 2
    assert sweep("--engine", "slurm") == 2
    assert sweep("--cores", "0") == 2
    assert "--cores 0 must be 1 or more" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert sweep("--output", str(tmp_path / "file")) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    os.chdir(tmp_path)
    assert main(["sweep", "nothing.yaml"]) == 2
    assert "there is no study nothing.yaml" in capsys.readouterr().err
