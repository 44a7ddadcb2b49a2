"""Objectives as they are written."""

import subprocess
import sys

import pytest

from tamt.runtime.errors import UserError
from tamt.terms import TERMS, describe, needs_head, needs_teacher, parse_objective


def test_terms_are_read_without_torch() -> None:
    check = "import sys, tamt.terms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "weights", "words"),
    [
        ("kd", {"kd": 1.0}, "kd"),
        ("kd:1,attention:1,mlm:0.5", {"kd": 1.0, "attention": 1.0, "mlm": 0.5}, "kd + attention + 0.5 mlm"),
        (" logits : 2e-1 , contrastive ", {"logits": 0.2, "contrastive": 1.0}, "0.2 logits + contrastive"),
        ("kd:1,mlm:0", {"kd": 1.0}, "kd"),
    ],
)
def test_weighted_sums(text: str, weights: dict[str, float], words: str) -> None:
    assert parse_objective(text) == weights
    assert describe(weights) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd,distil", "no term of 'distil'; the terms are mlm, kd, attention, logits, contrastive"),
        ("", "no term of ''"),
        ("kd:1,", "no term of ''"),
        ("KD", "no term of 'KD'"),
        ("kd:1,kd:2", "names kd twice"),
        ("kd:one", "gives kd the weight 'one', which is no number"),
        ("kd:", "gives kd the weight '', which is no number"),
        ("kd:1,mlm:-1", "gives mlm the weight -1; give 0 or more"),
        ("kd:nan", "gives kd the weight nan; give 0 or more"),
        ("kd:inf", "gives kd the weight inf; give 0 or more"),
        ("kd:0,mlm:0", "no weight above 0"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_objective(text)
    assert "\n" not in str(caught.value)


def test_what_terms_need() -> None:
    assert {name for name in TERMS if needs_teacher([name])} == {"kd", "attention", "logits"}
    assert {name for name in TERMS if needs_head([name])} == {"mlm", "logits"}
    assert needs_head(["kd", "mlm"])
    assert not needs_teacher(["mlm", "contrastive"])
