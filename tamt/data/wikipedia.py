"""The plain paragraphs of Wikipedia's articles, from a dump with its mark-up."""

import bz2
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tamt.runtime.errors import UserError

if TYPE_CHECKING:
    from mwparserfromhell.wikicode import Wikicode

FEWEST_WORDS = 10
"""Shorter lines are captions, list items without their bullet, or remains of a template."""
LIST_ITEM = "\0"
"""Marks a list item in the plain text."""
LEFT_OUT_LINKS = re.compile(r"(file|image|category|[a-z-]{2,12}) *:", re.IGNORECASE)
KEPT_TAGS = {"b", "i", "em", "strong", "small", "sub", "sup", "span", "nowiki", "u", "q", "blockquote", "p", "abbr"}
MARK_UP = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|!!|\|\||</?[a-z]|^[|!]")
HOLES = (  # the remains of a template: `( , born 1900 )` and ` ,`
    (re.compile(r"\([\s,;:]*\)"), ""),
    (re.compile(r"\([\s,;:]+"), "("),
    (re.compile(r"\s+(?=[,.;:)])"), ""),
    (re.compile(r"\s+"), " "),
)


def articles(dump: Path) -> Iterator[list[str]]:
    """The plain paragraphs of each article of a dump, without redirects and empty articles.

    Raises:
        UserError: mwparserfromhell is not installed.
    """
    try:
        import mwparserfromhell
    except ImportError as error:
        raise UserError('the demo\'s text needs the package mwparserfromhell; run: pip install "tamt[demo]"') from error
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag.endswith("}page"):
                if page.find("{*}redirect") is None and page.findtext("{*}ns") == "0":
                    text = page.findtext("{*}revision/{*}text") or ""
                    if lines := _paragraphs(_plain(mwparserfromhell.parse(text, skip_style_tags=False))):
                        yield lines
                page.clear()


def _plain(code: "Wikicode") -> str:
    """The text of `code` without templates, tables, references, headings and files; list items are marked."""
    from mwparserfromhell import nodes

    parts = []
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            parts.append(node.value)
        elif isinstance(node, nodes.Wikilink):
            if not LEFT_OUT_LINKS.match(str(node.title)):
                parts.append(_plain(node.text or node.title))
        elif isinstance(node, nodes.ExternalLink):
            parts.append(_plain(node.title) if node.title else "")
        elif isinstance(node, nodes.HTMLEntity):
            parts.append(node.normalize())
        elif isinstance(node, nodes.Tag):
            tag = str(node.tag).strip().lower()
            if tag in {"li", "dt", "dd"}:
                parts.append(LIST_ITEM)
            elif tag == "br":
                parts.append(" ")
            elif tag in KEPT_TAGS and node.contents:
                parts.append(_plain(node.contents))
    return "".join(parts)


def _paragraphs(text: str) -> list[str]:
    """The lines of `text` that are paragraphs: no list items, broken mark-up or fewer than FEWEST_WORDS words."""
    paragraphs = []
    for line in text.split("\n"):
        for hole, filling in HOLES:
            line = hole.sub(filling, line)
        line = line.strip()
        if len(line.split()) >= FEWEST_WORDS and LIST_ITEM not in line and not MARK_UP.search(line):
            paragraphs.append(line)
    return paragraphs
