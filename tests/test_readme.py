"""What the README shows works, and what it and the other pages link to is there."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from transformers import AutoModel

from tamt.cli import COMMANDS, parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*/*.md")})


def example(page: str) -> str:
    """The last Python example of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)[-1]


def test_the_example_of_tickets_runs(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Trainer writes there
    code = (
        example("README.md")
        .replace("bert-base-uncased", str(tiny_bert))
        .replace('corpus="wikitext-103"', 'method="omp"')
        .replace("max_length=128", "max_length=16")
    )
    rows = [{"input_ids": [i % 9, 3], "labels": i % 2} for i in range(8)]
    exec(compile(code, "README.md", "exec"), {"rows": rows})
    query = AutoModel.from_pretrained("my-model").encoder.layer[0].attention.self.query.weight
    assert int((query == 0).sum()) == int(0.7 * query.numel())


def test_the_example_of_the_kernels_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example("docs/api-kernels.md"), "api-kernels.md", "exec"), {})
    assert "tensor(700000)" in capsys.readouterr().out


def command_lines() -> list[str]:
    """The commands that the pages show whole, each on one line."""
    pages = "".join(page.read_text("utf-8") for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])
    blocks = [block for language, block in re.findall(r"^```(\w*)\n(.*?)^```", pages, re.M | re.S) if not language]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line.partition(" -m tamt ")[2] if " -m tamt " in line else line.removeprefix("tamt ") for line in lines]
    whole = [line for line, full in zip(found, lines, strict=True) if "tamt " in full and "…" not in full]
    return sorted({line for line in whole if line.split(" ")[0] in COMMANDS and "usage" not in line})


@pytest.mark.parametrize("line", command_lines())
def test_a_command_of_the_pages_is_one_that_tamt_takes(line: str) -> None:
    name, *arguments = shlex.split(line.replace("runs/*/mask.safetensors", "a b"), comments=True)
    if "--help" not in arguments:
        parse(name, arguments)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_every_picture_is_there() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    pictures = {
        page.parent / picture.partition("#")[0]
        for page in pages
        for picture in re.findall(r"!\[.*?\]\((.*?)\)|(?:src|srcset)=\"(.*?)\"", page.read_text(encoding="utf-8"))
        for picture in picture
        if picture
    }
    assert pictures
    assert [picture for picture in pictures if not picture.is_file()] == []


def test_the_page_has_the_rows_of_the_picture() -> None:
    names = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    found = names["scores"]((ROOT / "docs" / "reports.md").read_text(encoding="utf-8"))
    assert found.keys() >= {"full model", *names["SHOWN"]}
    assert found["full model"].keys() == found["TAMT-KD"].keys() == names["TASKS"].keys()


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    # A picture for one theme alone ends in #gh-light-mode-only or #gh-dark-mode-only.
    links = re.findall(r"\]\(([^):#]*)(?:#(?:gh-[\w-]*|([^)]*)))?\)", page.read_text(encoding="utf-8"))
    targets = [((page.parent / path).resolve() if path else page, heading) for path, heading in links]
    assert [path for path, heading in targets if not path.exists()] == []
    assert [(path.name, heading) for path, heading in targets if heading and heading not in anchors(path)] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in ROOT.glob("docs/*.md") if f"]({page.name})" not in index] == ["README.md"]


def test_the_files_that_contributors_are_sent_to_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tamt|tests|csrc|benchmarks|tamt_kernels)/[\w/.]+)`", page)
    assert named
    to_make = re.compile(r"NAME|FILE")
    assert [path for path in named if not to_make.search(path) and not (ROOT / path).exists()] == []
