"""`make docs` builds a site: no broken link, every public name and option, nothing from another host."""

import html
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import tamt
import tamt_kernels as tk
from tamt.cli import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site. Strict, so a link, an anchor or a page of the navigation that is not there fails here."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def words(text: str) -> str:
    """Letters and digits alone: quotes, dashes and spaces are typeset, and options have dashes for underscores."""
    return "".join(re.findall(r"[^\W_]", html.unescape(re.sub(r"<[^>]+>", "", text))))


def section(page: Path, name: str) -> str:
    """What a page says under the heading of a name, up to the next heading of its level, in letters and digits."""
    _, heading, rest = page.read_text(encoding="utf-8").partition(f'<h2 id="{name}"')
    assert heading, f"{page.name} has no section {name}"
    return words(rest.partition("<h2 id=")[0])


@pytest.mark.parametrize("module", [tamt, tk], ids=lambda module: module.__name__)
def test_every_public_name_is_there_with_its_docstring(site: Path, module) -> None:
    page = site / f"api-{module.__name__.removeprefix('tamt_')}.html"
    for name in (name for name in module.__all__ if name != "__version__"):
        documentation = inspect.getdoc(getattr(module, name))
        assert documentation
        assert words(documentation.splitlines()[0]) in section(page, f"{module.__name__}.{name}"), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_with_its_options(site: Path, name: str) -> None:
    found = section(site / "command-line.html", name)
    missing = [field.name for field in fields(COMMANDS[name].options) if words(field.name) not in found.lower()]
    assert missing == []


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    fetched = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src(?:set)?=\"?(?:https?:)?//"
        r"|<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)[^>]+href=\"?(?:https?:)?//"
    )
    pages = [page for page in site.rglob("*.html") if page.parent.name != "example-report"]
    assert len(pages) > 20
    assert [page.name for page in pages if fetched.search(page.read_text(encoding="utf-8"))] == []
