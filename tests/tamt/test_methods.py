"""The registry of methods: complete, light, and the only place that knows a method's name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tamt.cli import main
from tamt.finetuning.finetune import finetune
from tamt.masks.file import load_masks
from tamt.masks.masking import keep_of
from tamt.methods import (
    IMP_STEPS,
    METHODS,
    OMP,
    RANDOM,
    SCHEDULE_STEPS,
    STAGES,
    TAMT_STEPS,
    Method,
    find_method,
    last_step,
    paper_steps,
    steps_to,
)
from tamt.report.scores import label_of
from tamt.report.style import COLOURS, MARKS
from tamt.runtime.choices import check_initial, scores_of_start
from tamt.runtime.errors import UserError
from tamt.search.train import train
from tamt.sweep.plan import make_plan
from tamt.sweep.study import load_study
from tamt.training.compute import set_up


def test_the_registry_is_read_without_torch() -> None:
    check = "import sys, tamt.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_run_and_shown(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert callable(method.function())
    assert label_of(name) == method.label
    assert COLOURS[name] == method.colours
    assert MARKS[name] == method.mark
    assert method.needs_text or method.one_shot
    assert method.one_shot == (method.lr is None)


def test_labels_colours_and_marks_tell_methods_apart() -> None:
    for kind in ("label", "colours", "mark", "name"):
        values = [getattr(method, kind) for method in METHODS.values()]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", ["tamt_kd", "TAMT-KD", "KD", "", "omp ", "random"])
def test_a_name_that_is_no_method_is_refused_and_nothing_is_written(name: str, tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(UserError, match=f"--method {name.strip()} is not one of tamt-mlm, "):
        find_method(name)
    with pytest.raises(UserError, match=f"--method {name.strip()} is not one of tamt-mlm, "):
        train(method=name, model=str(tiny_bert), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean tamt-kd"):
        find_method("tamt_kd")


TOY = """
import torch
from tamt.masks.masking import keep_of
from tamt.search.oneshot import oneshot

def first_weights(search):
    def first(weight):
        return torch.arange(weight.numel()).view(weight.shape) < keep_of(weight.numel(), search.options.sparsity)

    return oneshot(search, lambda weights: {name: first(weight) for name, weight in weights.items()})
"""


def test_a_method_is_its_entry_and_its_function(tmp_path: Path, tiny_bert: Path, monkeypatch, capsys) -> None:
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    entry = Method("toy", "Toy", ("#000000", "#ffffff"), "*", "toy_method:first_weights", seeded=False)
    monkeypatch.setitem(METHODS, "toy", entry)

    words = ["--model", str(tiny_bert), "--sparsity", "0.5", "--output", str(tmp_path / "run")]
    assert main(["train", "--method", "toy", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["method"] == "toy"
    masks, info = load_masks(tmp_path / "run" / "mask.safetensors")
    assert info.method == "toy"
    assert all(mask.flatten()[: keep_of(mask.numel(), 0.5)].all() for mask in masks.values())
    assert main(["train", "--method", "toys", *words]) == 2
    assert "did you mean toy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert ",toy}" in capsys.readouterr().out

    (tmp_path / "study.yaml").write_text("models: demo\nmethods: toy\nsparsities: 0.5\n")
    assert "search/toy_demo_s0.5" in [run.path for run in make_plan(load_study(tmp_path / "study.yaml")).runs]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("initial", "OMP"),
        ("scores", "wanda"),
        ("ranking", "Signed"),
        ("precision", "FP32"),
        ("precision", "float16"),
        ("recipe", "Paper"),
    ],
)
def test_train_checks_each_of_its_choices(option: str, value: str, tmp_path: Path, corpus: Path, tiny_bert) -> None:
    options: dict[str, Any] = {"corpus": [str(corpus)], option: value}
    with pytest.raises(UserError, match=f"--{option} {value} is not "):
        train(method="tamt-kd", model=str(tiny_bert), output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_functions_below_train_check_too(tmp_path: Path, cats_and_dogs, tiny_bert: Path) -> None:
    with pytest.raises(UserError, match="--initial OMP is not "):
        check_initial("OMP")
    with pytest.raises(UserError, match="--scores Magnitude is not "):
        scores_of_start("Magnitude", None)
    with pytest.raises(UserError, match="--precision half is not one of fp32, bf16, fp16"):
        set_up("half", 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--precision half is not one of"):
        finetune(
            task="classification",
            model=str(tiny_bert),
            output=tmp_path / "run",
            precision="half",  # type: ignore[arg-type]
            **cats_and_dogs,
        )


def test_steps_are_those_of_table_2() -> None:
    assert last_step("tamt-kd", 0.7, None) == TAMT_STEPS[70] == 17_000
    assert last_step("tamt-mlm", 0.75, 123) == 123
    assert last_step("imp", 0.7, None) == steps_to(0.7, SCHEDULE_STEPS) == 16_752
    for percent, rounded in IMP_STEPS.items():  # the paper gives them in thousands, to two decimals
        assert steps_to(percent / 100, SCHEDULE_STEPS) == pytest.approx(rounded, abs=5)
    assert len(IMP_STEPS) == STAGES - 2
    assert last_step(OMP, 0.7, None) == last_step(RANDOM, 0.7, 100) == 0
    assert paper_steps(METHODS["tamt-kd"], 0.01) == TAMT_STEPS[20]
    assert paper_steps(METHODS["tamt-kd"], 0.84) == TAMT_STEPS[80]
    assert paper_steps(METHODS[OMP], 0.7) is None
