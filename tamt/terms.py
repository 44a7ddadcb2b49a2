"""The terms of an objective, and how a weighted sum of them is written: `kd:1,attention:1,mlm:0.5`.

Nothing here imports torch. The losses themselves are in `tamt.objectives`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tamt.runtime.errors import UserError, did_you_mean

Weights = Mapping[str, float]
"""The weight of each term of an objective, by the term's name."""


@dataclass(frozen=True)
class Term:
    """What a term needs.

    Attributes:
        teacher: it compares the student with the dense model.
        logits: it is a loss of logits at masked tokens. So tokens are masked, and the MLM head trains.
        dropout: it compares two views of a block, which differ by the student's dropout alone.
    """

    teacher: bool = False
    logits: bool = False
    dropout: bool = False


TERMS = {
    "mlm": Term(logits=True),
    "kd": Term(teacher=True),
    "attention": Term(teacher=True),
    "logits": Term(teacher=True, logits=True),
    "contrastive": Term(dropout=True),
}
"""The terms by name: cross-entropy of the masked tokens; KD of the hidden states, of the last layer's attention and of
the logits; and SimCSE."""


def needs_dropout(terms: Iterable[str]) -> bool:
    """Whether a term needs the student's dropout."""
    return any(TERMS[name].dropout for name in terms)


def needs_teacher(terms: Iterable[str]) -> bool:
    """Whether an objective with these terms compares with the dense model."""
    return any(TERMS[name].teacher for name in terms)


def needs_head(terms: Iterable[str]) -> bool:
    """Whether an objective with these terms masks tokens and trains the MLM head."""
    return any(TERMS[name].logits for name in terms)


def parse_objective(text: str) -> dict[str, float]:
    """The weights that a text such as `kd:1,attention:1,mlm:0.5` gives; a term without a weight has 1.

    Raises:
        UserError: a term is unknown or there twice, a weight is no number or below 0, or all are 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if name not in TERMS:
            hint = did_you_mean(name, TERMS, f"the terms are {', '.join(TERMS)}")
            raise UserError(f"--objective {text} has no term of {name!r}; {hint}")
        if name in weights:
            raise UserError(f"--objective {text} names {name} twice; add the weights up")
        try:
            weights[name] = float(number) if colon else 1.0
        except ValueError:
            raise UserError(f"--objective {text} gives {name} the weight {number!r}, which is no number") from None
        if not (math.isfinite(weights[name]) and weights[name] >= 0):
            raise UserError(f"--objective {text} gives {name} the weight {number}; give 0 or more")
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    if not weights:
        raise UserError(f"--objective {text} has no weight above 0, so there is nothing to train for; raise one")
    return weights


def describe(weights: Weights) -> str:
    """An objective in words: `kd + 0.5 mlm`."""
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())
