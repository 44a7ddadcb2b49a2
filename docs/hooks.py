"""What `mkdocs build` does beside its plugins: pages from outside docs/, and what is written from the code.

The sentences `COMMANDS_HERE` and `NAMES_HERE` of a page are for readers of the repository. The site has the options of
every command, and the public names of a module, in their place.
"""

import inspect
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/results/**/*.*", "examples/*.*")
"""Files that the site has besides those of docs/, under their paths in the repository."""

COMMANDS_HERE = "`make docs` lists the options of every command here."
NAMES_HERE = r"`make docs` lists the public names of `(\w+)` here\."

sys.path.insert(0, str(ROOT))

from tamt.cli import COMMANDS, parser_of  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            source = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is written from the code, and let links into the repository lead to the site's copies."""
    if page.parent is None:  # a tab of one page has nothing to navigate to
        page.meta["hide"] = ["navigation"]
    markdown = markdown.replace(COMMANDS_HERE, "\n".join(lines_of_commands()))
    markdown = re.sub(NAMES_HERE, lambda found: names_of(found[1]), markdown)
    return re.sub(r"\]\(([^):#]+)", lambda found: f"]({link(found[1], page.file)}", markdown)


def link(target: str, source: File) -> str:
    """A link of a page of the repository as one of the site, where docs/ is the root, and a report its own page."""
    path = Path(source.abs_src_path or "")
    page = (path.parent / target).with_suffix(".html")
    inside = os.path.relpath(page if page.is_file() else path.parent / target, ROOT)
    on_site = os.path.relpath(inside, "docs") if inside.startswith("docs/") else inside
    return os.path.relpath(on_site, os.path.dirname(source.src_uri) or ".")


def names_of(module: str) -> str:
    """The public names of a module, for mkdocstrings."""
    return "\n\n".join(f"::: {module}.{name}" for name in import_module(module).__all__ if name[0] != "_")


def lines_of_commands() -> Iterator[str]:
    """The commands with their options, as Markdown."""
    for name, command in COMMANDS.items():
        about = inspect.cleandoc(command.options.__doc__ or "").partition("\nArgs:\n")[0].strip()
        yield from (f"## tamt {name} {{ #{name} }}", "", escape(about), "")
        yield from ("| option | what it does |", "| --- | --- |", *rows(parser_of(name, command.options)), "")


def rows(parser: ArgumentParser) -> Iterator[str]:
    """A row of a table for each option of a command."""
    for option in parser._actions:
        written = option.option_strings[-1] if option.option_strings else option.dest.upper()
        takes_value = option.nargs != 0 and option.option_strings
        value = f" {option.metavar or option.dest.upper()}" if takes_value else ""
        choices = value.strip(" {}").split(",") if value.startswith(" {") else []
        allowed = f"<br>One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        text = escape((option.help or "").replace("%%", "%"))
        yield f"| `{written}{'' if choices else value}` | {text}{allowed} |"


def escape(text: str) -> str:
    """A text whose signs are none of Markdown's or HTML's."""
    return re.sub(r"([|*_<])", r"\\\1", text)
