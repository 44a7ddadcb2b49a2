"""Files that users hold: masks without some matrices, long cells, numbers where text is, byte order marks."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tamt.cli import main
from tamt.data.corpora import load_dev_corpus
from tamt.data.glue import labels_found, load_rows
from tamt.data.squad import load_questions
from tamt.data.tasks import Task, find_task
from tamt.finetuning.finetune import finetune
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.masking import POOLER, Masks, magnitude_masks, prunable_weights
from tamt.models.language_model import read_head
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError

WORDS = "embeddings.word_embeddings.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def omp(model: Path, sparsity: float = 0.5) -> Masks:
    return magnitude_masks(prunable_weights(AutoModel.from_pretrained(model), pooler=True), sparsity)


def write(path: Path, masks: Mapping[str, torch.Tensor], method: str = "omp") -> str:
    save_masks(path, masks, MaskInfo("any", method, 0.5, seed=0, step=0))
    return str(path)


def without(masks: Masks, *names: str) -> Masks:
    return {name: mask for name, mask in masks.items() if name not in names}


# Masks that do not name every matrix.


@pytest.mark.parametrize("command", ["evaluate", "finetune", "export"])
def test_a_matrix_without_a_mask_stays_dense_which_is_said(
    command: str, tiny_bert: Path, corpus: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, capsys
) -> None:
    mask = write(tmp_path / "mask.safetensors", without(omp(tiny_bert), WORDS, f"{POOLER}.weight"))
    words = [command, "--model", str(tiny_bert), "--mask", mask]
    words += {
        "evaluate": ["--corpus", str(corpus), "--max-length", "16"],
        "finetune": ["--task", "classification", "--epochs", "1", "--output", str(tmp_path / "run")]
        + [word for key, file in cats_and_dogs.items() for word in (f"--{key.replace('_', '-')}", str(file))],
        "export": ["--output", str(tmp_path / "out")],
    }[command]
    assert main(words) == 0
    assert f"the mask leaves {WORDS} out: this stays dense" in capsys.readouterr().err
    if command == "export":
        exported, original = (AutoModel.from_pretrained(path) for path in (tmp_path / "out", tiny_bert))
        assert torch.equal(exported.get_input_embeddings().weight, original.get_input_embeddings().weight)


@pytest.mark.parametrize("method", ["omp", "rand", "imp", "tamt-kd", "tamt-mlm"])
def test_a_search_can_leave_the_embedding_out(method: str, tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    words = ["train", "--method", method, "--model", str(tiny_bert), "--corpus", str(corpus), "--max-length", "16"]
    words += ["--output", str(tmp_path / "run"), "--dense-embedding"]
    words += [] if method in ("omp", "rand") else ["--steps", "20", "--lr", "1e-2"]
    assert main(words) == 0
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    weights = prunable_weights(AutoModel.from_pretrained(tiny_bert))
    assert weights.keys() - masks.keys() == {WORDS}


@pytest.mark.parametrize("left_out", [WORDS, f"{POOLER}.weight"])
def test_masks_are_compared_by_what_both_have(left_out: str, tiny_bert: Path, tmp_path: Path, capsys) -> None:
    whole = omp(tiny_bert)
    part = without(whole, left_out)
    paths = [write(tmp_path / "a.safetensors", whole), write(tmp_path / "b.safetensors", part, "rand")]
    assert main(["compare", *paths, "--json"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)["results"]
    assert left_out in captured.err
    assert "is left out of the comparison" in captured.err
    assert row["similarity"] == 1.0
    assert row["matrices"].keys() == part.keys()


def test_a_report_has_masks_with_and_without_the_embedding(tiny_bert, corpus, tmp_path: Path, capsys) -> None:
    for method, option in (("omp", []), ("tamt-kd", ["--dense-embedding", "--steps", "2"])):
        words = ["train", "--method", method, "--model", str(tiny_bert), "--output", str(tmp_path / "runs" / method)]
        assert main([*words, *option, "--corpus", str(corpus), "--max-length", "16"]) == 0
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report")]) == 0
    assert "other matrices" not in capsys.readouterr().err
    similarities = next((tmp_path / "report").rglob("fig-08*.csv")).read_text()
    assert "1.0" in similarities


@pytest.mark.parametrize("change", ["a layer is missing", "a shape differs", "a layer has another name"])
def test_masks_of_different_models_are_not_compared(change: str, tiny_bert: Path, tmp_path: Path, capsys) -> None:
    whole, name = omp(tiny_bert), "encoder.layer.1.output.dense.weight"
    other = without(whole, name)
    if change == "a shape differs":
        other[name] = whole[name].t().contiguous()
    if change == "a layer has another name":
        other[name.replace("1", "2")] = whole[name]
    paths = [write(tmp_path / "a.safetensors", whole), write(tmp_path / "b.safetensors", other)]
    assert main(["compare", *paths]) == 2
    assert "are for different models" in capsys.readouterr().err


# Rows.


@pytest.fixture
def rows(tmp_path: Path):
    """Reads a file of two rows as a classification's train and dev rows."""

    def read(name: str, text: str, **columns: object):
        (tmp_path / name).write_text(text, encoding="utf-8")
        task = Task("classification", text_columns=("text",), **columns)
        task, splits = load_rows(task, train_file=tmp_path / name, dev_file=tmp_path / name)
        return task, splits["train"]

    return read


def test_cells_of_any_length_are_read(rows) -> None:
    long = "word " * 100_000
    _, found = rows("rows.csv", f"text,label\n{long},a\nshort,b\n")
    assert found.texts[0] == (long,)


@pytest.mark.parametrize(("value", "label"), [("1.0", "1.0"), ("1", "1"), ("true", "True"), ("0.5", "0.5")])
def test_numbers_of_a_jsonl_file_are_read_as_those_of_a_csv_file(rows, value: str, label: str) -> None:
    task, _ = rows("rows.jsonl", f'{{"text": "x", "label": {value}}}\n{{"text": 7, "label": "no"}}\n')
    assert task.label_names is not None
    assert label in task.label_names


@pytest.mark.parametrize(("value", "what"), [("null", "null"), ("NaN", "null"), ("[1]", "a list"), ("{}", "an object")])
@pytest.mark.parametrize("column", ["text", "label"])
def test_what_is_no_text_is_named(rows, column: str, value: str, what: str) -> None:
    row = {"text": '"x"', "label": '"a"'} | {column: value}
    with pytest.raises(UserError, match=f"line 1: '{column}' is {what}, not text; write it as text or a number"):
        rows("rows.jsonl", f'{{"text": {row["text"]}, "label": {row["label"]}}}\n')


def test_a_column_that_is_there_twice_is_refused(rows) -> None:
    with pytest.raises(UserError, match="the column 'text' is there twice"):
        rows("rows.csv", "text,text,label\na,b,c\n")


def test_what_is_in_other_columns_does_not_matter(rows) -> None:
    text = '{"text": "x", "label": "a", "more": null}\n{"text": "y", "label": "b", "more": [1]}\n'
    assert len(rows("rows.jsonl", text)[1]) == 2


def test_the_labels_that_are_found_are_said(rows, cats_and_dogs, tiny_bert: Path, tmp_path: Path, capsys) -> None:
    assert labels_found(*rows("rows.csv", "text,label\na,1\nb,1 \nc,1\n")) == "2 labels: '1' (2 rows), '1 ' (1 rows)"
    scores = rows("scores.csv", "text,label\n" + "".join(f"a,{i / 7:.3f}\n" for i in range(30)))
    assert "and 20 more; to predict numbers, use --task regression" in labels_found(*scores)
    finetune(task="classification", model=str(tiny_bert), output=tmp_path / "run", epochs=1, **cats_and_dogs)
    assert capsys.readouterr().err.count("2 labels: 'bad' (102 rows), 'good' (102 rows)") == 1


def test_labels_that_are_the_same_number_have_one_order(rows) -> None:
    labels = ("2", "01", "1", "001", "0001")
    task, _ = rows("rows.csv", "text,label\n" + "".join(f"a,{label}\n" for label in labels))
    assert task.label_names == ("0001", "001", "01", "1", "2")


@pytest.mark.parametrize("value", ["7", "7.5", '"7"'])
def test_ids_and_texts_of_squad_may_be_numbers(tmp_path: Path, value: str) -> None:
    answers = [{"text": 1912, "answer_start": 3}]
    content = {"data": [{"paragraphs": [{"context": "in 1912", "qas": [{"id": json.loads(value), "question": 3}]}]}]}
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"] = answers
    for split in ("train", "dev"):
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(content))
    (question,) = load_questions(find_task("squad"), tmp_path)["dev"]
    assert (question.id, question.question, question.answers) == (value.strip('"'), "3", ["1912"])


# Text, and what Git LFS puts in place of a file.


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(str(request.getfixturevalue(name)))
    tokens = []
    for mark in ("", "\ufeff"):
        (tmp_path / "text.txt").write_text(f"{mark}the cat sees a dog\n", encoding="utf-8")
        tokens.append(load_dev_corpus([str(tmp_path / "text.txt")], tokenizer, 8).tokens.tolist())
    assert tokens[0] == tokens[1]


def test_a_pointer_of_git_lfs_is_no_text_and_no_rows(tiny_bert: Path, rows, tmp_path: Path) -> None:
    for name in ("text.txt", "head.safetensors"):
        (tmp_path / name).write_text(POINTER)
    message = "is a pointer of Git LFS and not the file itself; run git lfs pull in"
    with pytest.raises(UserError, match=f"text.txt {message}"):
        load_dev_corpus([str(tmp_path / "text.txt")], load_tokenizer(str(tiny_bert)), 8)
    with pytest.raises(UserError, match=f"rows.csv {message}"):
        rows("rows.csv", POINTER)
    with pytest.raises(UserError, match=f"head.safetensors {message}"):
        read_head(tmp_path / "head.safetensors")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_no_model(file: str, tiny_bert: Path, cats_and_dogs, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_bert.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / file).write_text(POINTER)
    with pytest.raises(UserError, match=f"{file} is a pointer of Git LFS"):
        finetune(task="classification", model=str(model), output=tmp_path / "run", **cats_and_dogs)
