"""What the README shows works, and what it and the other pages link to is there."""

import re
from pathlib import Path

import pytest
from transformers import AutoModel

import tamt

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*/*.md")})


OF_TICKETS, OF_KERNELS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_of_tickets_runs(tiny_bert: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_bert)
    tamt.Ticket.magnitude(model, 0.7).save(tmp_path / "mask.safetensors")
    example = OF_TICKETS.replace("bert-base-uncased", str(tiny_bert)).replace("runs/kd-70", str(tmp_path))
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    query = names["model"].base_model.encoder.layer[0].attention.self.query.weight
    assert int((query == 0).sum()) == int(0.7 * query.numel())


def test_the_example_of_the_kernels_runs(capsys) -> None:
    exec(compile(OF_KERNELS, "README.md", "exec"), {})
    assert "tensor(700000)" in capsys.readouterr().out


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    links = re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
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
