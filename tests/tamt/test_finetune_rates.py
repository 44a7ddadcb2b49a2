"""The learning rate of a fine-tuning: the default rule, the paper's, and the best of several."""

import json
from pathlib import Path

import pytest

from tamt.cli import parse
from tamt.finetuning import finetune as run_module
from tamt.finetuning.finetune import finetune
from tamt.finetuning.loop import Outcome
from tamt.finetuning.rates import best_over_runs, best_rate, default_rate, rates_in_words
from tamt.masks.file import MaskInfo, save_masks
from tamt.masks.masking import magnitude_masks, prunable_weights
from tamt.models.task_models import load_classifier
from tamt.runtime.errors import UserError
from tamt.search.train import train

SCORES = {(1e-3, 0): 0.6, (1e-3, 1): 0.7, (3e-3, 0): 0.9, (3e-3, 1): 0.5, (1e-2, 0): 0.5, (1e-2, 1): 0.5}
"""By rate and seed. The best single run is not at the best rate."""


@pytest.fixture
def options(tiny_bert: Path, cats_and_dogs: dict[str, Path]) -> dict:
    """Options of a fine-tuning of one epoch of few steps."""
    common = {"task": "classification", "model": str(tiny_bert), **cats_and_dogs}
    return {**common, "train_samples": 16, "epochs": 1, "batch_size": 8}


@pytest.fixture
def scored(options: dict, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The same, of runs whose scores are those of `SCORES`."""

    def outcome(job, folder, masks, *rest, lr, **others):  # type: ignore[no-untyped-def]
        score = SCORES[lr, job.seed]
        return Outcome(score, 2, {"accuracy": score}, score, 2, 1.0)

    monkeypatch.setattr(run_module, "train_subnetwork", outcome)
    monkeypatch.setattr(run_module, "draw_predictions", lambda task, output: None)
    return options


def test_the_default_is_the_papers_for_a_base_model_and_rises_with_sparsity() -> None:
    assert default_rate(768, 0.0) == 2e-5
    assert default_rate(384, 0.0) == 4e-5
    assert default_rate(384, 0.7) == 3.2e-4
    assert default_rate(1024, 0.5) == 9e-5


def test_the_best_rate_is_the_first_of_the_highest() -> None:
    assert best_rate({1e-4: 0.5, 3e-4: 0.6, 1e-3: 0.6}) == 3e-4
    assert best_rate({1e-4: None, 3e-4: -0.2}) == 3e-4
    assert best_rate({1e-4: None, 3e-4: None}) == 1e-4


def test_rates_are_compared_on_the_seeds_that_all_have() -> None:
    assert best_over_runs({1e-4: {0: 0.5, 1: 0.6}, 3e-4: {0: 0.4, 1: 0.6, 2: 1.0}}) == (1e-4, [0, 1])
    assert best_over_runs({1e-4: {0: 0.5}, 3e-4: {1: 0.6}})[1] == []


def test_an_undefined_score_makes_a_rate_worse_than_any_other() -> None:
    assert best_over_runs({3e-4: {0: 0.9, 1: None}, 1e-4: {0: 0.1, 1: 0.1}}) == (1e-4, [0, 1])
    assert best_over_runs({3e-4: {0: None, 1: 0.9}, 1e-4: {0: 0.1, 1: None}})[0] == 3e-4
    assert rates_in_words((None,)) == "default"
    assert rates_in_words((1e-4, 3e-4)) == "best of 2 rates: 0.0001, 0.0003"


def test_the_best_mean_over_the_seeds_is_the_result(scored: dict, tmp_path: Path, capsys) -> None:
    output = tmp_path / "run"
    (result,) = finetune(**scored, output=output, lr=[1e-3, 3e-3, 1e-2], seeds=[0, 1])["results"]
    assert (result["lr"], result["lr_choice"]) == (3e-3, "best of 3 rates")
    assert (result["score"], result["scores"]) == (pytest.approx(0.7), [0.9, 0.5])
    assert [(row["lr"], row["scores"]) for row in result["rates"]] == [
        (1e-3, [0.6, 0.7]),
        (3e-3, [0.9, 0.5]),
        (1e-2, [0.5, 0.5]),
    ]
    assert result["seconds"] == 6.0
    assert json.loads((output / "results.json").read_text()) == {"results": [result]}
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["lr-0.001", "lr-0.003", "lr-0.01"]
    assert "0.6500 at 0.001, 0.7000 at 0.003, 0.5000 at 0.01; the best of 3 rates is 0.003" in capsys.readouterr().err


def test_one_seed_takes_the_best_run(scored: dict, tmp_path: Path) -> None:
    (result,) = finetune(**scored, output=tmp_path / "run", lr=[1e-3, 3e-3], seed=1)["results"]
    assert (result["lr"], result["score"], result["seed"]) == (1e-3, 0.7, 1)
    assert (tmp_path / "run" / "lr-0.001" / "config.yaml").is_file()


def test_one_rate_is_a_plain_run(scored: dict, tmp_path: Path) -> None:
    for name, lr in {"a": 1e-3, "b": [1e-3]}.items():
        (result,) = finetune(**scored, output=tmp_path / name, lr=lr)["results"]
        assert "rates" not in result
        assert "lr: 0.001\n" in (tmp_path / name / "config.yaml").read_text()


def test_interrupted_rates_go_on_and_finished_ones_are_not_run_again(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"lr": [1e-3, 3e-3], "seeds": [0, 1]}
    (whole,) = finetune(**options, output=tmp_path / "whole")["results"]
    run_once, started = run_module._run, []

    def interrupted(task, make_job, options):  # type: ignore[no-untyped-def]
        started.append((options.lr, options.seed))
        if len(started) == 3:
            raise KeyboardInterrupt
        return run_once(task, make_job, options)

    monkeypatch.setattr(run_module, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(**options, output=tmp_path / "broken")
    with pytest.raises(UserError, match="--resume to continue interrupted --seeds or rates"):
        finetune(**options, output=tmp_path / "broken")
    (resumed,) = finetune(**options, output=tmp_path / "broken", resume=True)["results"]
    assert started == [(1e-3, 0), (1e-3, 1), (3e-3, 0), (3e-3, 0), (3e-3, 1)]
    for key in ("lr", "scores", "final_scores"):
        assert resumed[key] == whole[key]


@pytest.mark.parametrize(
    ("asked", "rate"),
    [({}, default_rate(32, 0.7)), ({"recipe": "paper"}, 2e-5), ({"lr": 1e-3, "recipe": "paper"}, 1e-3)],
)
def test_the_default_knows_the_mask_and_options_win(
    asked: dict, rate: float, options: dict, tiny_bert: Path, tmp_path: Path
) -> None:
    masks = magnitude_masks(prunable_weights(load_classifier(str(tiny_bert), ["a", "b"])), 0.7)
    save_masks(tmp_path / "mask.safetensors", masks, MaskInfo(str(tiny_bert), "omp", 0.7, seed=0, step=0))
    (result,) = finetune(**options, **asked, mask=tmp_path / "mask.safetensors", output=tmp_path / "run")["results"]
    assert result["lr"] == rate
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert max(line["lr"] for line in lines if "lr" in line) <= rate


def test_a_shrunk_model_counts_as_a_full_one(options: dict, tiny_bert: Path, tmp_path: Path) -> None:
    mask = train(method="omp", model=str(tiny_bert), structure="ffn:0.5", output=tmp_path / "omp")["results"][0]["mask"]
    (result,) = finetune(**options, mask=Path(mask), output=tmp_path / "run")["results"]
    assert result["lr"] == default_rate(32, 0.0)


def test_rates_come_with_commas_or_as_a_list_in_yaml(tmp_path: Path) -> None:
    words = ["--task", "rte", "--model", "m", "--output", "o"]

    def lr(*more: str) -> list[float]:
        options, _ = parse("finetune", [*words, *more])
        return options.lr

    assert lr("--lr", "1e-4,3e-4") == [1e-4, 3e-4]
    assert lr("--lr", "1e-4") == [1e-4]
    (tmp_path / "options.yaml").write_text("lr: [1e-4, 0.0003]\n")
    assert lr("--config", str(tmp_path / "options.yaml")) == [1e-4, 3e-4]
    (tmp_path / "options.yaml").write_text("lr: 0.0001\n")
    assert lr("--config", str(tmp_path / "options.yaml")) == [1e-4]
    with pytest.raises(UserError, match="--lr fast is not a list of numbers such as 1e-4,3e-4"):
        lr("--lr", "fast")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"lr": [1e-4, 1e-4]}, "--lr 0.0001 is given twice"),
        ({"lr": [1e-4, 0.0]}, "--lr 0 must be more than 0"),
        ({"lr": [float("inf")]}, "--lr inf must be more than 0 and finite"),
        ({"lr": []}, "--lr is an empty list"),
        ({"seeds": []}, "--seeds is an empty list"),
        ({"recipe": "magic"}, "--recipe magic is not one of short, paper"),
    ],
)
def test_bad_rates_are_refused(asked: dict, message: str, options: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        finetune(**options, **asked, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_of_the_resumed_runs_is_kept(scored: dict, tmp_path: Path) -> None:
    def run(folder: str, **options: object) -> dict:
        return finetune(**scored, output=tmp_path / folder, **options)["results"][0]

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "results.json").write_text("mine")
    run("seeds", lr=1e-3, seeds=[1])
    run("rates", lr=[1e-3, 3e-3], seeds=[0, 1])
    for folder, options, other in [
        ("notes", {"seeds": [0], "lr": 1e-3}, "results.json"),
        ("seeds", {"seeds": [0], "lr": 1e-3}, "results.json"),
        ("seeds", {"seeds": [0, 1], "lr": [1e-3, 3e-3]}, "results.json"),
        ("rates", {"seeds": [0], "lr": [1e-3, 3e-3]}, "seed-1"),
    ]:
        before = (tmp_path / folder / "results.json").read_text()
        with pytest.raises(UserError, match=rf"{folder}\S* holds {other}, which is not of these --seeds and rates"):
            run(folder, **options, resume=True)
        assert (tmp_path / folder / "results.json").read_text() == before
    assert len(run("seeds", lr=1e-3, seeds=[0, 1], resume=True)["scores"]) == 2  # more seeds may be added
