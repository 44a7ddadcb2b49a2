"""Saved fine-tuned models: the same score again, predictions for rows without labels, submissions to GLUE and SQuAD."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from tamt.cli import main
from tamt.commands.evaluate import evaluate
from tamt.commands.predict import predict
from tamt.finetuning.finetune import finetune
from tamt.runtime.errors import UserError

ANIMALS, COLOURS = ("cat", "dog", "bird", "fish"), ("red", "blue", "old", "new")
SENTENCES = [
    f"the {colour} {animal} sees a house{' by the road' * (i % 3)}"
    for i, (colour, animal) in enumerate((c, a) for c in COLOURS for a in ANIMALS)
]
SETTINGS = {"epochs": 2, "batch_size": 4, "lr": 1e-3}


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read_submission(file: Path) -> list[list[str]]:
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    assert header == "index\tprediction"
    return [line.split("\t") for line in lines]


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a classification of one's own, on columns and with a length of its own."""
    folder = tmp_path_factory.mktemp("classification")
    labels = [("good", "bad", "so so")[i % 3] for i in range(len(SENTENCES))]
    file = write(folder / "rows.csv", "words,kind", *map(",".join, zip(SENTENCES, labels, strict=True)))
    files = {"train_file": file, "dev_file": file, "text_column": ["words"], "label_column": "kind"}
    finetune("classification", str(tiny_bert), folder / "run", **files, max_length=9, **SETTINGS)
    return folder / "run"


@pytest.fixture(scope="module")
def glue(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's folder with train, dev and test rows of four tasks, and a run of each in `run/TASK`."""
    folder = tmp_path_factory.mktemp("glue")
    texts = {
        "cola": ("CoLA", ["{i}\t{text}"], "index\tsentence"),
        "sst2": ("SST-2", ["{i}\t{text}"], "index\tsentence"),
        "rte": ("RTE", ["{i}\t{text}\tthe {text}"], "index\tsentence1\tsentence2"),
        "stsb": ("STS-B", ["{i}\t{text}\tthe {text}"], "index\tsentence1\tsentence2"),
    }
    labels = {"cola": "01", "sst2": "01", "rte": ("entailment", "not_entailment"), "stsb": ("0.5", "4.25")}
    for task, (name, (layout,), header) in texts.items():
        test = [layout.format(i=i + 7, text=text) for i, text in enumerate(SENTENCES)]
        write(folder / name / "test.tsv", header, *test)
        for split in ("train", "dev"):
            if task == "cola":  # no header, and the text behind the label
                rows = [f"x\t{labels[task][i % 2]}\t*\t{text}" for i, text in enumerate(SENTENCES)]
            else:
                column = "score" if task == "stsb" else "label"
                rows = [f"{header}\t{column}", *(f"{row}\t{labels[task][i % 2]}" for i, row in enumerate(test))]
            write(folder / name / f"{split}.tsv", *rows)
        finetune(task, str(tiny_bert), folder / "run" / task, data_dir=folder, **{**SETTINGS, "epochs": 1})
    return folder


def results_of(run: Path) -> dict:
    (result,) = json.loads((run / "results.json").read_text())["results"]
    return result


def test_the_predictions_and_the_score_of_a_run_are_those_of_its_fine_tuning(run: Path, tmp_path: Path, capsys) -> None:
    words = ["predict", "--model", str(run), "--file", str(run.parent / "rows.csv")]
    assert main([*words, "--output", str(tmp_path / "answers.jsonl"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["metric"], result["score"]) == ("accuracy", results_of(run)["score"])
    assert (result["rows"], result["dev"]) == (16, results_of(run)["dev"])
    assert read_lines(tmp_path / "answers.jsonl") == read_lines(run / "predictions.jsonl")


def test_rows_without_labels_get_the_same_predictions_by_their_ids(run: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"row {i}", "words": text}) for i, text in enumerate(SENTENCES)]
    file = write(tmp_path / "rows.jsonl", *lines)
    (result,) = predict(str(run), file, tmp_path / "answers.jsonl")["results"]
    assert (result["metric"], result["score"], result["dev"]) == (None, None, {})
    known = read_lines(run / "predictions.jsonl")
    for row, before in zip(read_lines(tmp_path / "answers.jsonl"), known, strict=True):
        assert row == {key: value for key, value in before.items() if key != "label"} | {"id": f"row {before['id']}"}


@pytest.mark.parametrize("task", ["cola", "sst2", "rte", "stsb"])
def test_the_dev_score_of_a_run_is_measured_again(task: str, glue: Path, capsys) -> None:
    folder = glue / "run" / task
    fine_tuned = results_of(folder)
    assert main(["evaluate", "--task", task, "--model", str(folder), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["metric"], result["score"]) == (fine_tuned["metric"], fine_tuned["score"])
    assert (result["dev"], result["rows"]) == (fine_tuned["dev"], 16)
    (plain,) = evaluate(str(folder / "model"), task=task, data_dir=glue, batch_size=4)["results"]
    assert plain["dev"] == fine_tuned["dev"]


@pytest.mark.parametrize(
    ("task", "folder", "names"),
    [("cola", "CoLA", "01"), ("sst2", "SST-2", "01"), ("rte", "RTE", ["entailment", "not_entailment"])],
)
def test_a_test_set_of_glue_becomes_a_submission(task: str, folder: str, names, glue: Path, tmp_path: Path) -> None:
    predict(str(glue / "run" / task), glue / folder / "test.tsv", tmp_path / f"{folder}.tsv")
    found = read_submission(tmp_path / f"{folder}.tsv")
    model = AutoModelForSequenceClassification.from_pretrained(glue / "run" / task / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(glue / "run" / task / "model")
    for i, text in enumerate(SENTENCES):
        inputs = tokenizer(*([text, f"the {text}"] if task == "rte" else [text]), return_tensors="pt", truncation=True)
        with torch.no_grad():
            answer = int(model(**inputs).logits.argmax())
        assert found[i] == [str(i + 7), names[answer]]


def test_scores_are_submitted_as_numbers_within_their_scale(glue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(glue / "run" / "stsb" / "model")
    predict(str(glue / "run" / "stsb"), glue / "STS-B" / "test.tsv", tmp_path / "a.tsv")
    numbers = [float(number) for _, number in read_submission(tmp_path / "a.tsv")]
    assert len(set(numbers)) > 10
    assert all(0 <= number <= 5 for number in numbers)
    model.classifier.bias.data += 100
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(glue / "run" / "stsb" / "model").save_pretrained(folder)
    predict(str(folder), glue / "STS-B" / "test.tsv", tmp_path / "b.tsv", task="stsb")
    assert {number for _, number in read_submission(tmp_path / "b.tsv")} == {"5.0"}


def saved_classifier(folder: Path, tiny_bert: Path, names: list[str], order: list[int]) -> Path:
    """A random classifier whose outputs are those of one drawn with seed 0 in another order."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=len(names))
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    model.classifier.weight.data = model.classifier.weight.data[order]
    model.config.id2label = {i: names[label] for i, label in enumerate(order)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


def test_labels_are_known_by_their_names_whatever_their_order_and_case(
    tiny_bert: Path, glue: Path, tmp_path: Path, capsys
) -> None:
    answers = []
    for number, (names, order) in enumerate(
        [
            (["entailment", "not_entailment"], [0, 1]),
            (["ENTAILMENT", "NOT_ENTAILMENT"], [1, 0]),
            (["LABEL_0", "LABEL_1"], [0, 1]),
        ]
    ):
        folder = saved_classifier(tmp_path / str(number), tiny_bert, names, order)
        output = tmp_path / f"{number}.tsv"
        predict(str(folder), glue / "RTE" / "dev.tsv", output, task="rte")
        answers.append(read_submission(output))
    assert answers[0] == answers[1] == answers[2]
    assert {label for _, label in answers[0]} == {"entailment", "not_entailment"}
    assert "has no names for its labels, which are taken as entailment, not_entailment" in capsys.readouterr().err


@pytest.fixture(scope="module")
def squad(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and dev questions, and a run on them in `run`."""
    folder = tmp_path_factory.mktemp("squad")
    for split in ("train", "dev"):
        write(folder / f"{split}-v1.1.json", json.dumps(questions()))
    finetune("squad", str(tiny_bert), folder / "run", data_dir=folder, stride=3, max_length=20, n_best=5, **SETTINGS)
    return folder


def questions(answers: bool = True) -> dict:
    """SQuAD's layout: the colour of each animal is asked for, in contexts of several windows."""
    paragraphs = []
    for i, text in enumerate(SENTENCES):
        colour, animal = text.split()[1:3]
        row = {"id": f"q{i}", "question": f"the {animal}"}
        if answers:
            row["answers"] = [{"text": colour, "answer_start": 4}]
        paragraphs.append({"context": f"{text} by the big river", "qas": [row]})
    return {"data": [{"paragraphs": paragraphs}]}


def test_answers_are_written_for_squads_own_script(squad: Path, tmp_path: Path) -> None:
    predicted = {row["id"]: row["prediction"] for row in read_lines(squad / "run" / "predictions.jsonl")}
    (result,) = predict(str(squad / "run"), squad / "dev-v1.1.json", tmp_path / "a.json")["results"]
    assert json.loads((tmp_path / "a.json").read_text()) == predicted
    assert (result["score"], result["dev"]) == (results_of(squad / "run")["score"], results_of(squad / "run")["dev"])
    unanswered = write(tmp_path / "test.json", json.dumps(questions(answers=False)))
    (result,) = predict(str(squad / "run"), unanswered, tmp_path / "b.json")["results"]
    assert json.loads((tmp_path / "b.json").read_text()) == predicted
    assert result["score"] is None
    (result,) = evaluate(str(squad / "run"), task="squad")["results"]
    assert result["dev"] == results_of(squad / "run")["dev"]


def test_no_answer_is_lost_to_a_repeated_id(squad: Path, tmp_path: Path) -> None:
    asked = questions(answers=False)
    asked["data"][0]["paragraphs"][1]["qas"][0]["id"] = "q0"
    file = write(tmp_path / "test.json", json.dumps(asked))
    with pytest.raises(UserError, match=r"several questions with the id q0, of which a \.json keeps one"):
        predict(str(squad / "run"), file, tmp_path / "a.json")
    predict(str(squad / "run"), file, tmp_path / "a.jsonl")
    assert len(read_lines(tmp_path / "a.jsonl")) == len(SENTENCES)


def test_a_submission_has_a_line_for_each_row(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", json.dumps({"words": "the cat", "id": "a\tb"}))
    with pytest.raises(UserError, match=r"is no line of a \.tsv; give an --output that ends in \.jsonl"):
        predict(str(run), file, tmp_path / "a.tsv")
    assert not (tmp_path / "a.tsv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.csv",
            "words,kind\nthe cat,good\nthe dog,fine\n",
            "line 3: the label 'fine' is not one of bad, good, so so",
        ),
        ("rows.csv", "words,kind\nthe cat,fine\nthe dog,fine\n", "leave the column kind out"),
        ("rows.csv", "words,kind\nthe cat,good\nthe dog,\n", "line 3: the label is empty"),
        ("rows.csv", "sentence\nthe cat\n", "there is no column 'words' among sentence"),
        ("rows.csv", "words\n", "has no rows"),
        ("rows.csv", "", "has no rows"),
        ("rows.json", "{}", "is not a .tsv, .csv or .jsonl file"),
    ],
)
def test_a_bad_file_is_one_sentence(name: str, content: str, message: str, run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_text(content)
    words = ["predict", "--model", str(run), "--file", str(tmp_path / name)]
    assert main([*words, "--output", str(tmp_path / "answers.jsonl")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tamt predict: error: ")
    assert message in error
    assert not (tmp_path / "answers.jsonl").exists()


def test_what_is_no_fine_tuned_model_is_one_sentence(run: Path, glue: Path, tiny_bert: Path, tmp_path: Path) -> None:
    file = run.parent / "rows.csv"

    def refused(model: Path, message: str, name: str = "x.jsonl", **options: str) -> None:
        with pytest.raises(UserError, match=message):
            predict(str(model), file, tmp_path / name, **options)

    write(tmp_path / "search" / "config.yaml", "method: omp")
    write(tmp_path / "begun" / "config.yaml", "task: sst2")
    write(tmp_path / "seeds" / "seed-1" / "config.yaml", "task: sst2")
    refused(tiny_bert, "is a BertForMaskedLM, which has no head of a fine-tuned task")
    refused(tmp_path / "search", "is a search and no fine-tuning")
    refused(tmp_path / "begun", "has no model yet")
    write(tmp_path / "begun" / "results.json", "{}")
    refused(tmp_path / "begun", "its model was dropped, as studies do; .* keep_models: true")
    refused(tmp_path / "seeds", "holds several runs; give one of them, such as .*seed-1")
    refused(tmp_path / "none", "is no folder that is there")
    refused(run, "knows the labels bad, good, so so and the task rte has entailment, not_entailment", task="rte")
    refused(run, "does classification and the task squad is question-answering", task="squad")
    refused(run, "--task magic is not one of cola,", task="magic")
    refused(run, "must end in .tsv or .jsonl for classification", name="x.json")
    refused(glue / "run" / "rte", "--text-column is for --task classification", text_column=["a"])
    refused(run, "--max-length 99 is more than the 32 tokens", max_length=99)
    lacking = AutoModelForSequenceClassification.from_pretrained(run / "model")
    state = {name: tensor for name, tensor in lacking.state_dict().items() if not name.startswith("classifier")}
    lacking.save_pretrained(tmp_path / "lacking", state_dict=state)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "lacking")
    refused(tmp_path / "lacking", "lacks classifier.bias, which fine-tuning would have trained")
    lacking.config.problem_type = "multi_label_classification"
    lacking.save_pretrained(tmp_path / "lacking")
    refused(tmp_path / "lacking", "3 outputs that are multi_label_classification")


def test_a_run_is_asked_in_its_own_precision(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = (run / "config.yaml").read_text().replace("precision: fp32", "precision: bf16")
    (tmp_path / "run" / "config.yaml").write_text(config)
    for folder, precision in ((tmp_path / "run", "bf16"), (tmp_path / "run" / "model", "fp32")):
        output, columns = tmp_path / f"{precision}.jsonl", {"text_column": ["words"], "label_column": "kind"}
        (result,) = predict(str(folder), run.parent / "rows.csv", output, **columns)["results"]
        assert result["precision"] == precision


def test_a_file_that_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    there = write(tmp_path / "answers.jsonl", "mine")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        predict(str(run), run.parent / "rows.csv", there)
    assert there.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--corpus is missing; give it, or --task"),
        ({"corpus": ["x"], "task": "sst2"}, "--corpus is for losses on text; leave it or --task out"),
        ({"corpus": ["x"], "data_dir": Path("x")}, "--data-dir is for the score on a --task; leave it out"),
        ({"task": "classification", "data_dir": Path("x")}, "give --dev-file, and no --data-dir"),
        ({"task": "rte", "dev_file": Path("x")}, "knows the labels"),
        ({"task": "classification", "dev_file": Path("none.csv")}, "there is no file none.csv"),
        ({"task": "classification", "batch_size": 0}, "--batch-size 0 must be 1 or more"),
    ],
)
def test_evaluate_refuses_what_does_not_fit_together(options: dict, message: str, run: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(str(run), **options)
