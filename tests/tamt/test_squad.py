"""SQuAD: strict reading, windows over long contexts, answers cut from the context alone, learning."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from tamt.data.squad import Question, load_questions
from tamt.data.tasks import find_task
from tamt.finetuning.finetune import finetune
from tamt.finetuning.question_answering import QuestionAnswering, Window, best_answer, make_windows
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.masking import magnitude_masks, prunable_weights
from tamt.models.task_models import load_question_answerer
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute

REAL_DATA = Path(__file__).parents[3] / "shared" / "data" / "squad"
ANIMALS, COLOURS, PLACES = ("cat", "dog", "bird", "fish"), ("red", "blue", "old", "new"), ("tree", "house", "river")


def row(context: str, question: str, answer: str, number: int = 0) -> dict:
    answers = [{"text": answer, "answer_start": context.index(answer)}]
    return {"context": context, "qas": [{"id": f"q{number}", "question": question, "answers": answers}]}


def write(path: Path, paragraphs: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "x", "paragraphs": paragraphs}]}), "utf-8")
    return path


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """A folder with 32 train and dev questions, the same: the colour of the animal is the answer."""
    rows = []
    for i in range(32):
        animal, colour, place = ANIMALS[i % 4], COLOURS[i // 4 % 4], PLACES[i % 3]
        rows.append(row(f"the {colour} {animal} sees a {place} by the big road", f"the {animal}", colour, i))
    write(tmp_path / "squad" / "train-v1.1.json", rows)
    write(tmp_path / "squad" / "dev-v1.1.json", rows)
    return tmp_path / "squad"


SETTINGS = {"task": "squad", "batch_size": 8, "lr": 3e-3, "epochs": 20, "eval_every": 1000}


def test_a_tokenizer_that_pads_on_the_left_finds_the_same_answers(tiny_bert: Path, squad: Path, tmp_path: Path) -> None:
    left = shutil.copytree(tiny_bert, tmp_path / "left")
    AutoTokenizer.from_pretrained(tiny_bert, padding_side="left").save_pretrained(left)
    rows = [
        row(f"the {COLOURS[i % 4]} cat sees" + " the house" * (i % 3), "the cat", COLOURS[i % 4], i) for i in range(32)
    ]
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        write(squad / name, rows)
    options = {**SETTINGS, "epochs": 2, "data_dir": squad}
    right = finetune(model=str(tiny_bert), output=tmp_path / "a", **options)["results"][0]
    assert finetune(model=str(left), output=tmp_path / "b", **options)["results"][0]["dev"] == right["dev"]
    assert (tmp_path / "a" / "predictions.jsonl").read_text() == (tmp_path / "b" / "predictions.jsonl").read_text()


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta"])
def test_overfits_32_questions_and_the_saved_model_answers_with_plain_transformers(
    name: str, squad: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    masks = magnitude_masks(prunable_weights(load_question_answerer(str(model))), 0.5)
    save_masks(tmp_path / "mask.safetensors", masks, MaskInfo(str(model), "omp", 0.5, seed=0, step=0))
    (result,) = finetune(
        model=str(model), output=tmp_path / "run", data_dir=squad, mask=tmp_path / "mask.safetensors", **SETTINGS
    )["results"]
    assert result["metric"] == "f1"
    assert result["score"] >= 0.95
    assert result["dev"].keys() == {"f1", "exact_match"}
    assert result["train_samples"] == 32
    predictions = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in predictions] == [f"q{i}" for i in range(32)]
    assert np.mean([line["f1"] for line in predictions]) == result["score"]
    assert all(line["label"] == [COLOURS[i // 4 % 4]] for i, line in enumerate(predictions))
    assert all(0 < line["probability"] <= 1 for line in predictions)
    saved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    inputs = tokenizer("the dog", "the blue dog sees a river by the big road", return_tensors="pt")
    outputs = saved(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    found = inputs["input_ids"][0, outputs.start_logits.argmax() : outputs.end_logits.argmax() + 1]
    assert tokenizer.decode(found) == "blue"
    weights = prunable_weights(saved)
    kept = load_masks(tmp_path / "mask.safetensors")[0]
    assert sum(int(weights[n].detach()[~mask].view(torch.int32).count_nonzero()) for n, mask in kept.items()) == 0


def test_a_subset_is_plain_and_seeded(tiny_bert: Path, squad: Path, tmp_path: Path) -> None:
    options = {**SETTINGS, "epochs": 1, "train_samples": 5, "data_dir": squad, "model": str(tiny_bert)}
    (result,) = finetune(output=tmp_path / "run", **options)["results"]
    assert (result["train_samples"], result["final_step"]) == (5, 1)


CONTEXT = " ".join(
    f"the {colour} {animal} sees a {place}" for colour in COLOURS for animal in ANIMALS for place in PLACES
)


def test_long_contexts_give_windows_that_overlap_by_the_stride(tiny_bert: Path) -> None:
    model, tokenizer = load_question_answerer(str(tiny_bert)), load_tokenizer(str(tiny_bert))
    start = CONTEXT.index("new fish sees a river")
    question = Question("a", "the fish", CONTEXT, ["new fish"], [start])
    windows = make_windows([question], tokenizer, model, max_length=32, stride=10)
    words = len(CONTEXT.split())
    covered = np.zeros(words, dtype=int)
    for window, following in pairwise(windows):
        assert len(window.features["input_ids"]) == 32
        assert (window.offsets[-10:] == following.offsets[:10]).all()
    starts = np.cumsum([0, *(len(word) + 1 for word in CONTEXT.split())])[:-1]
    for window in windows:
        covered[np.searchsorted(starts, window.offsets[:, 0])] += 1
        first, last = window.answer
        if window.offsets[0, 0] <= start and start + len("new fish") <= window.offsets[-1, 1]:
            assert tokenizer.decode(window.features["input_ids"][first : last + 1]) == "new fish"
        else:
            assert (first, last) == (0, 0), "[CLS] where the answer is not wholly in the window"
        assert set(window.features) == {"input_ids", "attention_mask", "token_type_ids"}
    assert covered.min() == 1
    assert any(window.answer != (0, 0) for window in windows)


def test_roberta_has_no_token_types_and_long_questions_are_cut(tiny_roberta: Path) -> None:
    model, tokenizer = load_question_answerer(str(tiny_roberta)), load_tokenizer(str(tiny_roberta))
    question = Question("a", "the old dog " * 20, "the red cat", ["red"], [4])
    (window,) = make_windows([question], tokenizer, model, max_length=32, stride=8)
    assert set(window.features) == {"input_ids", "attention_mask"}
    assert window.context == (18, 21), "16 tokens of the question between two separators"
    assert window.answer == (19, 19)


def test_the_loss_of_a_window_does_not_depend_on_the_others_of_its_batch(tiny_bert: Path) -> None:
    model, tokenizer = load_question_answerer(str(tiny_bert)).eval(), load_tokenizer(str(tiny_bert))
    contexts = "the red cat", "the red cat sees a tree by the big road and the old dog finds a house"
    questions = [Question(context, "the cat", context, ["red"], [4]) for context in contexts]
    windows = [make_windows([question], tokenizer, model, max_length=32, stride=8)[0] for question in questions]

    def loss(windows: list[Window]) -> float:
        compute = Compute(torch.device("cpu"), "fp32")
        job = QuestionAnswering(
            find_task("squad"), model, tokenizer, compute, windows, windows, questions, len(windows), len(windows),
            seed=0, n_best=20, max_answer_length=30,
        )  # fmt: skip
        return float(job.loss(next(job.batches(1)))["loss"].detach())

    alone = [loss([window]) for window in windows]
    assert loss(windows) == pytest.approx(sum(alone) / 2, rel=1e-5)


def window(begin: int, spans: list[tuple[int, int]]) -> Window:
    features = {"input_ids": np.zeros(begin + len(spans) + 1, dtype=np.int32)}
    return Window(features, 0, (begin, begin + len(spans)), np.array(spans, dtype=np.int32), (0, 0))


QUESTION = Question("q", "?", "one two three four", ["two"], [4])
SPANS = [(0, 3), (4, 7), (8, 13), (14, 18)]


@pytest.mark.parametrize(
    ("start", "end", "options", "answer"),
    [
        ([9, 0, 0, 0], [0, 0, 0, 9], {}, "one two three four"),
        ([9, 0, 0, 0], [0, 0, 5, 9], {"max_answer_length": 3}, "one two three"),
        ([0, 0, 9, 0], [0, 9, 0, 0], {}, "three"),  # 9 + 0; the end before the start is no span; ties: found first
        ([0, 0, 9, 8], [9, 0, 0, 0], {"n_best": 1}, ""),  # the one pair ends before it starts
    ],
)
def test_only_spans_of_the_context_are_answers(start: list, end: list, options: dict, answer: str) -> None:
    # The question and the separators have the highest logits of all.
    logits = [np.array([99.0, 99.0, *part, 99.0]) for part in (start, end)]
    chosen = {"n_best": 20, "max_answer_length": 30, **options}
    found = best_answer(QUESTION, [window(2, SPANS)], [logits[0]], [logits[1]], **chosen)
    assert found.text == answer


def test_the_best_of_all_windows_is_the_answer_with_its_share_of_the_candidates() -> None:
    windows = [window(1, SPANS[:2]), window(1, SPANS[1:3])]
    starts = [np.array([0, 1.0, 2.0, 0]), np.array([0, 2.0, 5.0, 0])]
    ends = [np.array([0, 1.0, 2.0, 0]), np.array([0, 3.0, 4.0, 0])]
    found = best_answer(QUESTION, windows, starts, ends, n_best=20, max_answer_length=30)
    assert (found.text, found.score) == ("three", 9.0)
    # one 2, one two 3, two 5 (of the second window; 4 in the first), two three 6, three 9
    assert found.probability == pytest.approx(np.exp(9) / np.exp([2, 3, 5, 6, 9]).sum(), abs=1e-12)


def test_files_are_found_by_pattern_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train-sample.json", [row("the café is red", "the", "café"), row("a b", "?", "b", 1)])
    write(tmp_path / "dev-v1.1.json", [row("日本 is old", "?", "is old")])
    write(tmp_path / "dev-other.json", [])
    questions = load_questions(find_task("squad"), tmp_path)
    assert questions["train"][0] == Question("q0", "the", "the café is red", ["café"], [4])
    assert questions["dev"] == [Question("q0", "?", "日本 is old", ["is old"], [3])]
    said = " ".join(capsys.readouterr().err.split())
    assert f"train questions from {tmp_path}/train-sample.json" in said
    assert f"dev questions from {tmp_path}/dev-v1.1.json" in said
    assert "squad has 2 train rows here, officially 87,599" in said


def spoilt(key: str, value: object) -> str:
    paragraph = row("the café is red", "the", "café")
    (paragraph["qas"][0]["answers"][0] if key in ("text", "answer_start") else paragraph["qas"][0])[key] = value
    return json.dumps({"data": [{"paragraphs": [row("a b", "?", "b"), paragraph]}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spoilt("answer_start", 5), r"data\[0\]\.paragraphs\[1\]\.qas\[0\]\.answers\[0\]: the answer 'café' is not at"),
        (spoilt("answer_start", -1), r"is not at character -1"),
        (spoilt("answer_start", "4"), r"answers\[0\]: there is no number 'answer_start'"),
        (spoilt("text", ""), r"the answer '' is not at character 4"),
        (spoilt("answers", []), r"paragraphs\[1\]\.qas\[0\]: the question has no answer, as in SQuAD v2.0"),
        (spoilt("question", None), r"qas\[0\]: there is no text 'question'"),
        ('{"data": []}', r"train-v1\.1\.json has no questions"),
        ("[]", r"the file: there is no list 'data'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]: there is no text 'context'"),
        ('{"data":\n [', r"train-v1\.1\.json, line 2: not JSON"),
        (spoilt("question", "x").replace("the caf", "\n\xff"), r"train-v1\.1\.json, line 2: not UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, content: str, message: str) -> None:
    encoding = "latin-1" if "\xff" in content else "utf-8"
    (tmp_path / "train-v1.1.json").write_text(content, encoding=encoding)
    write(tmp_path / "dev-v1.1.json", [row("a b", "?", "b")])
    with pytest.raises(UserError, match=message):
        load_questions(find_task("squad"), tmp_path)


def test_missing_and_ambiguous_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no train-v1\.1\.json"):
        load_questions(find_task("squad"), tmp_path)
    write(tmp_path / "train-a.json", [])
    write(tmp_path / "train-b.json", [])
    with pytest.raises(UserError, match=r"are 2 \(train-a\.json, train-b\.json\) but no train-v1\.1\.json"):
        load_questions(find_task("squad"), tmp_path)


def test_the_hubs_questions_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def splits(start: int) -> dict:
        answers = [{"text": ["b", "a b"], "answer_start": [start, 0]}]
        columns = {"id": ["x"], "title": ["t"], "context": ["a b"], "question": ["?"], "answers": answers}
        return {name: datasets.Dataset.from_dict(columns) for name in ("train", "validation")}

    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits(2))
    found = load_questions(find_task("squad"))
    assert found["train"] == found["dev"] == [Question("x", "?", "a b", ["b", "a b"], [2, 0])]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits(1))
    with pytest.raises(UserError, match=r"rajpurkar/squad, train\[0\]\.answers\[0\]: the answer 'b' is not at"):
        load_questions(find_task("squad"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sst2", "stride": 4}, "--stride is for --task squad or squad2, not sst2"),
        ({"task": "stsb", "n_best": 4}, "--n-best is for --task squad or squad2, not stsb"),
        ({"task": "demo", "max_answer_length": 4}, "--max-answer-length is for --task squad or squad2, not demo"),
        ({"stride": 13}, "hold 13 tokens of context beside a long question, which --stride 13 does not fit into"),
        ({"stride": -1}, "--stride -1 must not be negative"),
        ({"n_best": 0}, "--n-best 0 must be 1 or more"),
        ({"train_file": Path("x.tsv")}, "for --task classification, not squad"),
        ({"text_column": ["x"]}, "--text-column is for --task classification"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str, tiny_bert: Path, squad: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        finetune(**{**SETTINGS, "model": str(tiny_bert), "output": tmp_path / "run", "data_dir": squad, **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real SQuAD sample is not at ../shared/data")
def test_the_real_sample_is_read() -> None:
    questions = load_questions(find_task("squad"), REAL_DATA)
    assert {split: len(found) for split, found in questions.items()} == {"train": 429, "dev": 276}
    assert max(len(question.answers) for question in questions["dev"]) >= 3
