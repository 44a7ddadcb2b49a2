"""`make docs` has a page for the kernels and for each command, with what their docstrings say."""

import html
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import pdoc.__main__
import pdoc.render
import pytest

import tamt_kernels as tk
from tamt.cli import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (options,) = re.findall(r"-m pdoc (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    pdoc.render.configure(docformat=pdoc.__main__.parser.parse_args(shlex.split(options)).docformat)
    commands = sorted({command.module for command in COMMANDS.values()})
    # Of packages their own page alone, as each takes a second.
    pdoc.pdoc("tamt_kernels", *commands, r"!tamt_kernels\.", output_directory=folder)
    return folder


def section(page: Path, name: str) -> str:
    """What a page says about a name, in HTML."""
    (found,) = re.findall(rf'<section id="{name}">(.*?)</section>', page.read_text(encoding="utf-8"), re.DOTALL)
    return found.partition('class="docstring"')[2].partition(">")[2]


def words(text: str) -> str:
    """Letters and digits alone: quotes, dashes and spaces are typeset."""
    return "".join(re.findall(r"\w", html.unescape(re.sub(r"<[^>]+>", "", text))))


@pytest.mark.parametrize("name", tk.__all__)
def test_a_public_name_of_the_kernels_is_there_with_its_docstring(pages: Path, name: str) -> None:
    documentation = inspect.getdoc(getattr(tk, name))
    assert documentation
    assert words(documentation.splitlines()[0]) in words(section(pages / "tamt_kernels.html", name))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_function_of_a_command_is_there_with_its_options(pages: Path, name: str) -> None:
    module = COMMANDS[name].module
    function = getattr(import_module(module), name)
    found = section(pages.joinpath(*module.split(".")).with_suffix(".html"), name)
    assert words((function.__doc__ or "").splitlines()[0]) in words(found)
    listed = re.findall(r"<li><strong>(.*?):</strong>", found)
    assert listed == list(inspect.signature(function).parameters)
