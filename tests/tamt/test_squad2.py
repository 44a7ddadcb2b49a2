"""SQuAD v2.0: questions without answer are read, learned, left unanswered and scored as the official script does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tamt.commands.evaluate import evaluate
from tamt.commands.predict import predict
from tamt.data.squad import Question, load_questions, read_questions
from tamt.data.tasks import find_task
from tamt.finetuning.finetune import finetune
from tamt.finetuning.metrics import answer_exact_match, answer_f1, best_threshold
from tamt.finetuning.question_answering import QuestionAnswering, Window, best_answer, make_windows
from tamt.models.task_models import load_question_answerer
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError
from tamt.training.compute import Compute

TASK = find_task("squad2")


def row(context: str, question: str, answer: str | None, number: int) -> dict:
    answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
    asked = {"id": f"q{number}", "question": question, "answers": answers, "is_impossible": answer is None}
    if answer is None:
        asked["plausible_answers"] = [{"text": "the", "answer_start": 0}]
    return {"context": context, "qas": [asked]}


def write(file: Path, paragraphs: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}), "utf-8")
    return file


def test_questions_without_answer_are_read_for_squad2_alone(tmp_path: Path, capsys) -> None:
    rows = [row("the red cat", "the cat", "red", 0), row("the red cat", "the fish", None, 1)]
    for split in ("train", "dev"):
        write(tmp_path / f"{split}-v2.0.json", rows)
        write(tmp_path / f"{split}-v1.1.json", rows[:1])
    found = load_questions(TASK, tmp_path)
    assert found["train"] == found["dev"]
    assert found["dev"] == [
        Question("q0", "the cat", "the red cat", ["red"], [4]),
        Question("q1", "the fish", "the red cat", [], []),
    ]
    assert "squad2 has 2 train rows here, officially 130,319" in " ".join(capsys.readouterr().err.split())
    assert len(load_questions(find_task("squad"), tmp_path)["dev"]) == 1
    with pytest.raises(
        UserError, match=r"qas\[0\]: the question has no answer, as in SQuAD v2.0; choose --task squad2"
    ):
        read_questions(tmp_path / "dev-v2.0.json", find_task("squad"))


def test_a_file_without_any_answer_is_unlabelled_and_one_with_some_is_not(tmp_path: Path) -> None:
    bare = {"context": "the red cat", "qas": [{"id": "q0", "question": "the cat"}]}
    assert read_questions(write(tmp_path / "a.json", [bare]), TASK, need_answers=False) == (
        [Question("q0", "the cat", "the red cat", [], [])],
        False,
    )
    none = row("the red cat", "the fish", None, 1)
    assert read_questions(write(tmp_path / "b.json", [none]), TASK, need_answers=False)[1]
    with pytest.raises(UserError, match=r"paragraphs\[1\]\.qas\[0\]: there is no list 'answers'"):
        read_questions(write(tmp_path / "c.json", [none, bare]), TASK, need_answers=False)


# Prediction, right answers that are more than articles and punctuation, F1 and exact match of evaluate-v2.0, by hand.
@pytest.mark.parametrize(
    ("prediction", "answers", "word_f1", "exact"),
    [
        ("", [], 1, 1),
        ("the", [], 1, 1),  # normalised to nothing, as the empty text
        ("red", [], 0, 0),
        ("", ["red"], 0, 0),
        ("the red dog", ["red cat", "blue"], 2 / 4, 0),
    ],
)
def test_answers_and_none_have_the_values_worked_out_by_hand(
    prediction: str, answers: list[str], word_f1: float, exact: float
) -> None:
    assert answer_f1(prediction, answers) == pytest.approx(word_f1)
    assert answer_exact_match(prediction, answers) == exact


def test_the_best_threshold_is_that_of_the_official_script() -> None:
    # All unanswered: 2 of 5. Answered in the order of the differences: + 1, + 0.5, - 1, + 0, - 1: 3.5 is the most.
    scores, differences, answerable = [1, 0.5, 0, 0, 0], [-2, 0.2, 0.5, 1, 3], [True, True, False, True, False]
    assert best_threshold(scores, differences, answerable) == (0.7, 0.2)
    assert best_threshold([0.4, 0], [5, 4], [True, False]) == (0.5, 0.0)  # better all unanswered


def test_no_answer_scores_the_least_of_all_windows() -> None:
    features = {"input_ids": np.zeros(3, dtype=np.int32)}
    spans = np.array([[0, 3]], dtype=np.int32)
    windows = [Window(features, 0, (1, 2), spans, (2, 2), nowhere=2) for _ in range(2)]
    starts, ends = [np.array([9, 1.0, 3]), np.array([9, 1.5, 1])], [np.array([9, 2.0, 4]), np.array([9, 2.0, 1])]
    found = best_answer(Question("q", "?", "red cat", [], []), windows, starts, ends, 20, 30)
    assert (found.text, found.score, found.no_answer) == ("red", 3.5, 2 - 3.5)


class Told(QuestionAnswering):
    """Answers by logits that are told, in the order of the windows."""

    logits: tuple[Tensor, Tensor]

    def _logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.logits


def test_a_question_is_left_unanswered_where_none_scores_more_than_the_best_answer(tiny_bert: Path) -> None:
    model, tokenizer = load_question_answerer(str(tiny_bert)), load_tokenizer(str(tiny_bert))
    context = "the red cat sees"  # tokens 3 to 6, behind [CLS] cat [SEP]
    right = [["red"], ["red cat", "the"], [], []]  # of the second the latter is none for the official script
    questions = [
        Question(str(i), "cat", context, answers, [context.index(answer) for answer in answers])
        for i, answers in enumerate(right)
    ]
    windows = make_windows(questions, tokenizer, model, max_length=20, stride=5)
    assert [window.answer for window in windows] == [(4, 4), (4, 5), (0, 0), (0, 0)]
    compute = Compute(torch.device("cpu"), "fp32")
    job = Told(TASK, model, tokenizer, compute, [], windows, questions, 4, 4, seed=0, n_best=20, max_answer_length=1)
    logits = torch.zeros(4, 8)
    for i, (token, best, none) in enumerate([(4, 4, 1), (4, 2, 3), (5, 2, 4), (6, 4, 5.5)]):
        logits[i, token], logits[i, 0] = best / 2, none / 2  # the same for start and end
    job.logits = logits, logits
    scores = job.evaluate()
    rows = job.predictions()[""]
    assert [row["prediction"] for row in rows] == ["red", "", "", ""]
    assert [row["no_answer"] for row in rows] == [-3, 1, 2, 1.5]
    assert [(row["f1"], row["exact_match"]) for row in rows] == [(1, 1), (0, 0), (1, 1), (1, 1)]
    # Without a threshold the second answer would have an F1 of 2/3, and the others nothing.
    assert scores == {
        "f1": 3 / 4,
        "exact_match": 3 / 4,
        "best_f1": pytest.approx((3 + 2 / 3) / 4),
        "best_f1_threshold": 1,
        "best_exact_match": 3 / 4,
        "best_exact_match_threshold": -3,
    }


def test_a_run_learns_which_questions_have_no_answer(tiny_bert: Path, tmp_path: Path) -> None:
    rows = []
    for i in range(24):
        animal, colour = ("cat", "dog", "bird")[i % 3], ("red", "blue", "old", "new")[i // 3 % 4]
        context = f"the {colour} {animal} sees a tree"
        rows.append(row(context, *((f"the {animal}", colour) if i % 2 else ("the fish", None)), i))
    for split in ("train", "dev"):
        write(tmp_path / f"{split}-v2.0.json", rows)
    options = {"batch_size": 8, "lr": 3e-3, "epochs": 12, "eval_every": 1000, "data_dir": tmp_path}
    (result,) = finetune("squad2", str(tiny_bert), tmp_path / "run", **options)["results"]
    assert result["metric"] == "f1"
    assert result["score"] >= 0.95
    assert result["dev"]["best_f1"] >= result["score"]
    output = tmp_path / "answers.json"
    (again,) = predict(str(tmp_path / "run"), tmp_path / "dev-v2.0.json", output)["results"]
    answers = json.loads(output.read_text())
    assert np.mean([answers[f"q{i}"] == "" for i in range(0, 24, 2)]) >= 0.9
    assert again["dev"] == result["dev"]
    assert evaluate(str(tmp_path / "run"), task="squad2")["results"][0]["dev"] == result["dev"]
