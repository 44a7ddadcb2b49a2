"""The metrics equal scikit-learn's and scipy's, and those of SQuAD values worked out by hand."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tamt.finetuning.metrics import METRICS, accuracy, answer_exact_match, answer_f1, f1, matthews, normalise, pearson

EXACT = 1e-9
THEIRS = {
    "accuracy": lambda p, t: sklearn.metrics.accuracy_score(t, p),
    "matthews": lambda p, t: sklearn.metrics.matthews_corrcoef(t, p),
    "f1": lambda p, t: sklearn.metrics.f1_score(t, p),
    "pearson": lambda p, t: scipy.stats.pearsonr(p, t).statistic,
    "spearman": lambda p, t: scipy.stats.spearmanr(p, t).statistic,
}


@pytest.mark.parametrize(
    ("metric", "labels"),
    [("accuracy", 2), ("accuracy", 3), ("matthews", 2), ("matthews", 3), ("f1", 2), ("pearson", 0), ("spearman", 0)],
)
def test_equal_on_random_predictions(metric: str, labels: int) -> None:
    generator = np.random.default_rng(0)
    for rows in (7, 277, 1500, 9815):
        if labels:
            true, predicted = generator.integers(0, labels, (2, rows))
        else:  # STS-B's labels have ties, and so have predictions in 16-bit
            true = np.round(generator.uniform(0, 5, rows) * 4) / 4
            predicted = np.round(true / 2 + generator.normal(size=rows), 2)
        assert abs(METRICS[metric](predicted, true) - THEIRS[metric](predicted, true)) < EXACT


def test_undefined_is_none_and_a_constant_prediction_is_not() -> None:
    one, mixed = np.ones(4, dtype=int), np.array([0, 1, 1, 0])
    assert matthews(mixed, one) is None
    assert matthews(one, mixed) == sklearn.metrics.matthews_corrcoef(mixed, one) == 0.0
    assert f1(one * 0, one * 0) is None
    assert f1(one * 0, mixed) == 0.0
    assert accuracy(one, one) == 1.0
    constant = np.full(7, 0.1)
    assert pearson(np.arange(7.0), constant) is None
    assert pearson(constant, np.arange(7.0)) is None


# Prediction, right answers, F1 and exact match, by hand: normalised words in common, 2·common / (words of both).
HARD = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the Denver Broncos", ["Denver Broncos"], 1, 1),  # articles
    ("The Theatre", ["theatre"], 1, 1),  # an article within a word stays
    ("A an THE", ["the a"], 0, 1),  # both nothing: the official script finds no word in common
    ("", ["Denver"], 0, 0),  # empty prediction
    ("", ["the"], 0, 1),
    ("...", ["Denver"], 0, 0),
    ("Denver, Broncos!", ["denver broncos"], 1, 1),  # punctuation goes without leaving a space
    ("well-known", ["well known"], 0, 0),  # wellknown
    ("well-known", ["wellknown"], 1, 1),
    ("$1.5 million", ["15 million"], 1, 1),
    ("Broncos", ["Denver Broncos"], 2 / 3, 0),
    ("the Broncos of Denver", ["Denver Broncos"], 4 / 5, 0),  # order does not matter for F1
    ("to be to be", ["to be"], 4 / 6, 0),  # a word counts as often as it is in both
    ("in the 1990s", ["1990s", "during the 1990s"], 2 / 3, 0),  # the best of several answers
    ("Broncos", ["Panthers", "the Broncos", "Denver"], 1, 1),
    ("Beyoncé", ["beyoncé"], 1, 1),  # unicode
    ("BEYONCÉ Knowles", ["Beyonce Knowles"], 2 / 4, 0),  # an accent is not stripped
    ("Łódź", ["łódź"], 1, 1),
    ("“Denver”", ["Denver"], 0, 0),  # only ASCII punctuation is punctuation
    ("10–12", ["10-12"], 0, 0),  # so is a dash
    ("Denver\u00a0Broncos", ["Denver Broncos"], 1, 1),  # any white space parts words
    ("  Denver \n\t Broncos ", ["Denver Broncos"], 1, 1),
    ("東京", ["東京"], 1, 1),
    ("Ohio's a state", ["ohios state"], 1, 1),
]


@pytest.mark.parametrize(("prediction", "answers", "word_f1", "exact"), HARD)
def test_hard_answers_have_the_values_worked_out_by_hand(
    prediction: str, answers: list[str], word_f1: float, exact: float
) -> None:
    assert abs(answer_f1(prediction, answers) - word_f1) < EXACT
    assert answer_exact_match(prediction, answers) == exact


def test_normalisation_keeps_the_order_of_the_official_script() -> None:
    assert normalise("The.a (an) U.S.A.") == "thea usa"
    assert normalise("a-b the-c") == "ab thec"
