"""Every GLUE task from files in its layout to a fine-tuned model, its predictions and a picture of them."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tamt.cli import main
from tamt.data.tasks import find_task
from tamt.finetuning import finetune as run
from tamt.finetuning.classification import Classification
from tamt.finetuning.finetune import finetune
from tamt.finetuning.plots import draw_predictions
from tamt.runtime.errors import UserError

SENTENCES = ["the {} dog sees a house", "a {} cat finds the river by the road", "{} fish", "the bird hears a {} tree"]
WORDS = ["new", "old", "red"]
LAYOUTS = {  # folder, header, a row of a label, a text and a second text; labels
    "cola": ("CoLA", "", "gj04\t{label}\t\t{text}", "01"),
    "sst2": ("SST-2", "sentence\tlabel", "{text}\t{label}", "01"),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel",
        "0\t{text}\t{pair}\t{label}",
        ["entailment", "not_entailment"],
    ),
    "mnli": (
        "MNLI",
        "index\tsentence1\tsentence2\tgold_label",
        "0\t{text}\t{pair}\t{label}",
        ["entailment", "neutral", "contradiction"],
    ),
    "mrpc": ("MRPC", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{text}\t{pair}", "01"),
    "stsb": ("STS-B", "index\tsentence1\tsentence2\tscore", "0\t{text}\t{pair}\t{label}", ["0.5", "2.25", "4.8"]),
}
SETTINGS = {"batch_size": 8, "lr": 3e-3, "epochs": 24, "eval_every": 48}


def write(folder: Path, task: str, rows: int = 32, dev_labels: int | None = None) -> Path:
    """GLUE's files of a task: train and dev rows are the same, but that dev may have only the first labels."""
    name, header, layout, labels = LAYOUTS[task]
    (folder / name).mkdir(parents=True, exist_ok=True)
    dev = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for split in ["train", *dev]:
        lines = [header] if header else []
        for i in range(rows):
            label = i % (dev_labels or len(labels) if split != "train" else len(labels))
            text = SENTENCES[i // len(labels) % 4].format(WORDS[label])
            lines.append(layout.format(label=labels[label], text=text, pair="the dog"))
        (folder / name / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def predictions(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


METRICS = {
    "cola": {"matthews", "accuracy"},
    "sst2": {"accuracy"},
    "rte": {"accuracy"},
    "mnli": {"accuracy", "accuracy_mismatched"},
    "mrpc": {"accuracy", "f1"},
    "stsb": {"pearson", "spearman"},
}


@pytest.mark.parametrize("task", LAYOUTS)
def test_overfits_32_rows_of_each_task(
    task: str, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "run", write(tmp_path / "glue", task)
    options = SETTINGS | ({"epochs": 40, "lr": 5e-3} if task == "stsb" else {})  # its output has further to go
    (result,) = finetune(task=task, model=str(tiny_bert), output=folder, data_dir=data, **options)["results"]
    assert result["final_score"] >= 0.99
    assert result["dev"].keys() == METRICS[task]
    said = capsys.readouterr().err
    assert all(f"{metric} {score:.4f}" in said for metric, score in result["dev"].items())
    assert result["dev"][result["metric"]] == result["score"]
    files = ["predictions.jsonl", *(["predictions_mismatched.jsonl"] if task == "mnli" else [])]
    for file in files:
        rows = predictions(folder / file)
        assert [row["id"] for row in rows] == list(range(32))
        if task == "stsb":
            assert np.corrcoef(*zip(*((row["prediction"], row["label"]) for row in rows), strict=True))[0, 1] > 0.99
            assert [row["label"] for row in rows[:3]] == [0.5, 2.25, 4.8]
            check_regression(folder / "model")
        else:
            assert np.mean([row["prediction"] == row["label"] for row in rows]) == result["dev"]["accuracy"]
            for row in rows:
                assert sum(row["probabilities"].values()) == pytest.approx(1)
                assert max(row["probabilities"], key=row["probabilities"].get) == row["prediction"]
    assert (folder / "predictions.png").read_bytes().startswith(b"\x89PNG")


def check_regression(folder: Path) -> None:
    """The saved model opens and answers with plain transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    assert tokenizer.model_max_length == 32, "the positions of the model, which are fewer than the paper's 128"
    answer = pipeline("text-classification", model=model, tokenizer=tokenizer)
    pairs = [{"text": f"the {word} dog sees a house", "text_pair": "the dog"} for word in WORDS]
    assert [row["score"] for row in answer(pairs)] == pytest.approx([0.5, 2.25, 4.8], abs=0.5)


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_a_dev_set_of_one_label_has_no_score_and_that_is_said(
    task: str, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path, task, dev_labels=1)
    options = {**SETTINGS, "epochs": 2, "eval_every": 3}
    (result,) = finetune(task=task, model=str(tiny_bert), output=tmp_path / "run", data_dir=data, **options)["results"]
    assert (result["score"], result["final_score"], result["best_step"]) == (None, None, 8)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"results": [result]}
    assert "undefined where the dev labels" in " ".join(capsys.readouterr().err.split())
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert len(predictions(tmp_path / "run" / "predictions.jsonl")) == 32


def test_an_undefined_score_is_worse_than_any(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([None, None, -0.5, None])
    evaluate = Classification.evaluate
    monkeypatch.setattr(Classification, "evaluate", lambda self: {**evaluate(self), "pearson": next(scores)})
    options = {**SETTINGS, "epochs": 2, "eval_every": 2, "data_dir": write(tmp_path, "stsb")}
    (result,) = finetune(task="stsb", model=str(tiny_bert), output=tmp_path / "run", **options)["results"]
    assert (result["score"], result["best_step"], result["final_score"]) == (-0.5, 6, None)


def test_early_stop_ends_after_evaluations_with_no_better_score(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.75, 0.75, 0.8, 0.8, 0.7, 0.9])
    evaluate = Classification.evaluate
    monkeypatch.setattr(Classification, "evaluate", lambda self: {**evaluate(self), "accuracy": next(scores)})
    options = {**SETTINGS, "eval_every": 2, "data_dir": write(tmp_path, "sst2")}
    (result,) = finetune(task="sst2", model=str(tiny_bert), output=tmp_path / "run", early_stop=2, **options)["results"]
    assert (result["score"], result["best_step"]) == (0.8, 8)
    assert (result["final_score"], result["final_step"]) == (0.7, 12)


def test_seeds_run_one_after_the_other_and_are_not_run_twice(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = ["finetune", "--task", "sst2", "--model", str(tiny_bert), "--data-dir", str(write(tmp_path, "sst2"))]
    words += ["--epochs", "1", "--lr", "1e-3", "--batch-size", "8", "--seeds", "3,5,8", "--output", str(output)]
    started = []
    train = run.train_subnetwork

    def counted(job: Classification, *rest, **options):  # type: ignore[no-untyped-def]
        started.append(job.seed)
        if started == [3, 5]:
            raise KeyboardInterrupt
        return train(job, *rest, **options)

    monkeypatch.setattr(run, "train_subnetwork", counted)
    assert main(words) == 130
    assert not (output / "results.json").exists()
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*words, "--resume", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert started == [3, 5, 5, 8], "what is finished is not done again"
    each = [json.loads((output / f"seed-{seed}" / "results.json").read_text())["results"][0] for seed in (3, 5, 8)]
    assert [row["seed"] for row in each] == [3, 5, 8]
    scores = [row["score"] for row in each]
    assert result["scores"] == scores
    assert result["seeds"] == [3, 5, 8]
    assert (result["score"], result["score_std"]) == (statistics.mean(scores), statistics.stdev(scores))
    assert result["final_score"] == statistics.mean(row["final_score"] for row in each)
    assert json.loads((output / "results.json").read_text()) == {"results": [result]}
    assert main([*words, "--resume", "--lr", "1e-4"]) == 2
    assert "was started with lr" in capsys.readouterr().err


def test_seeds_leave_a_single_run_alone(tiny_bert: Path, tmp_path: Path) -> None:
    options = {**SETTINGS, "epochs": 1, "task": "sst2", "model": str(tiny_bert), "data_dir": write(tmp_path, "sst2")}
    finetune(output=tmp_path / "run", **options)
    before = (tmp_path / "run" / "results.json").read_bytes()
    for resume, message in ((False, "nothing in it is overwritten"), (True, "holds one run, not several to resume")):
        with pytest.raises(UserError, match=message):
            finetune(output=tmp_path / "run", seeds=[1, 2], resume=resume, **options)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1, 2, 1]}, "--seeds 1 is negative, over 32 bits or given twice"),
        ({"seed": -1}, "--seed -1 is negative"),
        ({"early_stop": 0}, "--early-stop 0 must be 1 or more"),
        ({"data_dir": Path("/no/such/folder")}, "there are no train.tsv, dev_matched.tsv, dev_mismatched.tsv in"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str, tiny_bert: Path, tmp_path: Path) -> None:
    chosen = {"task": "mnli", "data_dir": write(tmp_path, "mnli"), **SETTINGS, **options}
    with pytest.raises(UserError, match=message):
        finetune(model=str(tiny_bert), output=tmp_path / "run", **chosen)
    assert not (tmp_path / "run").exists()


def test_labels_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    task = replace(find_task("classification"), label_names=("$", "$$", "a_$b"))
    rows = [{"prediction": name, "label": "$"} for name in task.label_names]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_predictions(task, tmp_path)
    assert (tmp_path / "predictions.png").is_file()


def test_no_matrix_of_very_many_labels_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_predictions(replace(find_task("classification"), label_names=tuple(map(str, range(101)))), tmp_path)
    assert "as 101 labels are more than 100" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_picture_without_matplotlib_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    draw_predictions(find_task("stsb"), tmp_path)
    assert "pip install 'tamt[plots]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
