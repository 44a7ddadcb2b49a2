"""The metrics of the tasks, in double precision.

torchmetrics rounds to single precision, 6e-8 from scikit-learn's value; a score should not depend on who computes it.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tamt.data.tasks import Metric


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """The share of correct answers."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """F1 of the label with id 1; None if it is neither predicted nor true anywhere."""
    both = int(np.sum((predictions == 1) & (labels == 1)))
    either = int(np.sum(predictions == 1) + np.sum(labels == 1))
    return 2 * both / either if either else None


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Matthews' correlation of any number of labels (Gorodkin 2004).

    None if all rows have one label; 0, as in scikit-learn, if only the predictions are all the same.
    """
    names = np.union1d(predictions, labels)
    predicted = np.array([np.sum(predictions == name) for name in names], dtype=float)
    true = np.array([np.sum(labels == name) for name in names], dtype=float)
    right, rows = float(np.sum(predictions == labels)), float(len(labels))
    spread_predicted, spread_true = rows**2 - predicted @ predicted, rows**2 - true @ true
    if spread_true == 0:
        return None
    if spread_predicted == 0:
        return 0.0
    return float((right * rows - predicted @ true) / np.sqrt(spread_predicted * spread_true))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Pearson's correlation; None if either side is constant."""
    # Not by the variance: that of a constant column need not round to 0.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return None
    return float(np.corrcoef(predictions.astype(float), labels.astype(float))[0, 1])


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Pearson's correlation of the ranks, ties at their mean rank; None if either side is constant."""
    return pearson(ranks(predictions), ranks(labels))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value from 1, ties at their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


METRICS: dict[Metric, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}

UNDEFINED = "is undefined where the dev labels, or a correlation's predictions, are all the same"
"""Why a metric is None."""


def score_in_words(score: float | None) -> str:
    """A score to four digits, `undefined` if it is None."""
    return "undefined" if score is None else f"{score:.4f}"


def scores_in_words(scores: Mapping[str, float | None]) -> str:
    """`accuracy 0.8120, f1 undefined`."""
    return ", ".join(f"{name} {score_in_words(score)}" for name, score in scores.items())


def answer_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD v1.1 and v2.0: 1.0 if the prediction equals one of the answers, all normalised, else 0.0.

    Where there is no answer, as in v2.0, the right prediction is the empty text.
    """
    return float(any(normalise(prediction) == normalise(answer) for answer in answers or [""]))


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD v1.1 and v2.0: the F1 of the words that the prediction shares with an answer, the best over the answers.

    As in the official script of v1.1, texts with no word in common have 0, two that are normalised to nothing too.
    Where there is no answer, as in v2.0, a prediction that is normalised to nothing has 1, and any other 0.
    """
    if not answers:
        return answer_exact_match(prediction, answers)
    return max(_word_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def best_threshold(
    scores: Sequence[float], differences: Sequence[float], answerable: Sequence[bool]
) -> tuple[float, float]:
    """The best mean score that a threshold gives on SQuAD v2.0's questions, and that threshold, as its official script.

    The lowest of equally good thresholds counts; one below all differences is called 0 there.

    Args:
        scores: what each question's best answer scores, where it has no answer 0.
        differences: the score of no answer less that of the best answer; a question whose difference is above the
            threshold is left unanswered.
        answerable: whether a question has an answer.
    """
    total = best = float(sum(not has for has in answerable))  # of leaving all unanswered
    threshold = 0.0
    for difference, score, has in sorted(zip(differences, scores, answerable, strict=True), key=lambda row: row[0]):
        total += score - (not has)
        if total > best:
            best, threshold = total, difference
    return best / len(scores), threshold


def _word_f1(predicted: list[str], right: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right)) if common else 0.0


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())
