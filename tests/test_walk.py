"""The page that walks through the code names files that are there, and what it says they hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-a-search-runs.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:tamt|tamt_kernels|csrc)/[\w/.]*)`", PAGE)))
NAMED = re.findall(r"`([A-Za-z_]+)`\s+(?:in\s+|\()`([\w/]+\.py)`", PAGE)


def test_the_walk_names_files_that_are_there() -> None:
    assert len(PATHS) > 30
    assert [path for path in PATHS if not (ROOT / path).exists()] == []


def test_the_walk_names_what_its_files_define() -> None:
    assert len(NAMED) > 10
    wrong = [
        f"{name} in {path}"
        for name, path in NAMED
        if not re.search(rf"^(?:class|def) {name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert wrong == []
