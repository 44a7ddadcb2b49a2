"""Broken and hostile files: whatever is in them, they are read or refused with one sentence; nothing else happens.

With TAMT_SOAK=1 (`make soak`) at fifty times as many mutations.
"""

import json
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamt.cli import parse
from tamt.data.glue import load_rows
from tamt.data.squad import load_questions
from tamt.data.tasks import find_task
from tamt.masks import file as mask_file
from tamt.masks import sparse_file
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.sparse_file import load_sparse_state, save_sparse
from tamt.runtime.errors import UserError
from tamt.runtime.tensor_files import join_header
from tamt.training.checkpoint import DIGEST, DIGEST_BYTES, MAGIC
from tamt.training.run_folder import RunFolder, finished_results, version_of

MORE = 50 if "TAMT_SOAK" in os.environ else 1
SECONDS = 60
"""After which a file counts as one that hangs its reader; it takes milliseconds."""
MEMORY = 1 << 30
"""Bytes that a reader may take on top of what the process has; the files are smaller than 0.1 MB."""

# What readers stumble over: ends of lines and of quotes, other alphabets, numbers that are too large, nesting.
TOKENS = [
    b"\x00", b"\n", b"\r", b"\t", b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"-", b"&a", b"*a", b"<<: *a",
    b"!!python/name:os.system", b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 5000, b"1000000000000", b"0x1F",
    b"2001-99-99", b"\xff", b"\xef\xbb\xbf", b'"\\ud800"', "é\u2028".encode(), b"[" * 3000, b"{'a':" * 3000,
    b"- " * 3000, b"x" * 200_000,
]  # fmt: skip
MUTATION = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "repeat", "replace", "end"]),
    st.floats(0, 1),
    st.integers(1, 60),
    st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=8),
)
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=4)


def mutate(content: bytes, mutations: list[tuple[str, float, int, bytes]]) -> bytes:
    """`content` after each mutation: its kind, where, how long, and what is put there."""
    for kind, share, length, token in mutations:
        at = int(share * len(content))
        before, here, after = content[:at], content[at : at + length], content[at + length :]
        content = {
            "flip": before + bytes([byte ^ (1 << length % 8) for byte in here[:1]]) + here[1:] + after,
            "cut": before + after,
            "insert": before + token + here + after,
            "repeat": before + here * 2 + after,
            "replace": before + token + after,
            "end": before,
        }[kind]
    return content


def many(examples: int) -> Callable:
    """Try so many examples, the same ones each time."""
    return settings(
        max_examples=examples * MORE,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _within_limits() -> Iterator[None]:
    """A reader that takes much memory or time fails its test."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").is_file() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused_or_done(read: Callable[[], object]) -> None:
    """Read; a UserError of one sentence is as good as success."""

    def hang(*_: object) -> None:
        raise TimeoutError("the reader hangs")

    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    message = ""
    try:
        read()
    except UserError as error:
        message = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert "\n" not in message


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def good_mask(folder: Path) -> bytes:
    """A mask file."""
    path = folder / "good.safetensors"
    masks = {f"layer.{i}.weight": torch.arange(24 + i).view(-1, 1) % 3 == 0 for i in range(3)}
    save_masks(path, masks, MaskInfo("model", "omp", 0.67, seed=0, step=3))
    return path.read_bytes()


@many(700)
@given(mutations=MUTATIONS)
def test_mask_files(folder: Path, good_mask: bytes, mutations) -> None:
    path = folder / "mask.safetensors"
    path.write_bytes(mutate(good_mask, mutations))
    refused_or_done(lambda: load_masks(path))


@many(150)
@given(mutations=MUTATIONS, field=st.sampled_from(sorted(mask_file.FIELDS)))
def test_mask_files_with_another_header_of_the_right_length(
    folder: Path, good_mask: bytes, mutations, field: str
) -> None:
    length = int.from_bytes(good_mask[:8], "little")
    header = json.loads(good_mask[8 : 8 + length])
    value = mutate(header["__metadata__"][field].encode(), mutations).decode("utf-8", "replace")
    header["__metadata__"][field] = value
    changed = json.dumps(header).encode()
    path = folder / "header.safetensors"
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + good_mask[8 + length :])
    refused_or_done(lambda: load_masks(path))


@many(150)
@given(mutations=MUTATIONS, new=st.booleans())
def test_published_mask_files(folder: Path, mutations, new: bool) -> None:
    masks = {f"bert.{i}.weight": torch.ones(5, 5, dtype=torch.bool) for i in range(2)}
    torch.save(masks, folder / "good.pt", _use_new_zipfile_serialization=new)  # not new: as before torch 1.6
    (folder / "mask.pt").write_bytes(mutate((folder / "good.pt").read_bytes(), mutations))
    refused_or_done(lambda: load_masks(folder / "mask.pt"))


@pytest.fixture(scope="module")
def good_sparse(folder: Path) -> bytes:
    """A sparse file."""
    path = folder / "good-sparse.safetensors"
    weights = {f"layer.{i}.weight": torch.arange(60.0).view(6, 10) % 3 // 2 for i in range(2)}
    save_sparse(path, {**weights, "bias": torch.ones(5), "positions": torch.arange(4)}, "float32")
    return path.read_bytes()


@many(300)
@given(mutations=MUTATIONS, part=st.sampled_from(["file", "header", "data", *sorted(sparse_file.FIELDS)]))
def test_sparse_files(folder: Path, good_sparse: bytes, mutations, part: str) -> None:
    path = folder / "sparse.safetensors"
    path.write_bytes(mutate(good_sparse, mutations) if part == "file" else resealed(good_sparse, mutations, part))
    refused_or_done(lambda: load_sparse_state(path))


def resealed(good: bytes, mutations: list[tuple[str, float, int, bytes]], part: str) -> bytes:
    """A sparse file whose header, data or field of the metadata is changed by somebody who knows how it is made."""
    length = int.from_bytes(good[:8], "little")
    text, data = good[8 : 8 + length], good[8 + length :]
    if part == "header":
        changed = mutate(text, mutations)
        return len(changed).to_bytes(8, "little") + changed + data
    header = json.loads(text)
    if part == "data":
        data = mutate(data, mutations)
    else:
        value = mutate(header["__metadata__"][part].encode(), mutations).decode("utf-8", "replace")
        header["__metadata__"][part] = value
    if part != "digest":
        header["__metadata__"]["digest"] = sparse_file._digest(header, memoryview(data))
    return join_header(header, memoryview(data))


SETTINGS = {"model": "bert", "sparsity": 0.7, "corpus": ["a", "b"], "output": Path("run")}


@pytest.fixture(scope="module")
def run(folder: Path) -> dict[str, bytes]:
    """The files of an interrupted run, by their names."""
    path = folder / "run"
    with RunFolder(path, SETTINGS) as opened:
        for step in (1, 2):
            opened.log(step, loss=0.5, lr=1e-3)
            opened.save_checkpoint(step, {"trained": {"w": torch.ones(3)}, "best": {"score": None}})
    (path / "spare.json").write_text(json.dumps({"results": [{"method": "omp", "sparsity": 0.7}]}))
    names = ["config.yaml", "metrics.jsonl", "spare.json", "checkpoints/step-1.checkpoint"]
    return {name: (path / name).read_bytes() for name in [*names, "checkpoints/step-2.checkpoint"]}


@many(200)
@given(mutations=MUTATIONS, number=st.integers(0, 3), digest=st.booleans())
def test_run_folders(folder: Path, run: dict[str, bytes], mutations, number: int, digest: bool) -> None:
    name = list(run)[number]
    content = mutate(run[name], mutations)
    if "checkpoint" in name and digest:  # of somebody who knows how it is made
        content = mutate(run[name][len(MAGIC) + DIGEST_BYTES :], mutations)
        content = MAGIC + DIGEST(content).digest() + content
    path = folder / "broken"
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    for other, before in run.items():
        (path / other).write_bytes(content if other == name else before)
    (path / "checkpoints" / "step-2.checkpoint").unlink()
    if name == "spare.json":
        (path / name).rename(path / "results.json")
        refused_or_done(lambda: finished_results(path, SETTINGS))
        (path / "results.json").unlink()
    else:
        refused_or_done(lambda: go_on(path))
    version_of(path)


def go_on(path: Path) -> None:
    with RunFolder(path, SETTINGS, resume=True) as opened:
        opened.resume(lambda state: torch.zeros(3).copy_(state["trained"]["w"]))


CONFIG = (
    b"method: tamt-kd\nmodel: bert\noutput: run\ncorpus: [a.txt, b.txt]\nsparsity: 0.7\nsave_at: [1, 2]\nresume: true\n"
)


@many(60)
@given(mutations=MUTATIONS)
def test_options_in_yaml(folder: Path, mutations) -> None:
    path = folder / "options.yaml"
    path.write_bytes(mutate(CONFIG, mutations))
    refused_or_done(lambda: parse("train", ["--config", str(path)]))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
        "a: &a {x: 1}\nb: {<<: *a}\n",
        "seed: !!python/object/apply:os.system ['touch executed']\n",
    ],
    ids=["a billion laughs", "a merge", "code"],
)
def test_hostile_yaml(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("options.yaml").write_text(text)
    with pytest.raises(UserError, match=r"options\.yaml is no YAML file of options"):
        parse("train", ["--config", "options.yaml"])
    Path("config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is no YAML file of options"):
        RunFolder(tmp_path, SETTINGS, resume=True)
    assert not Path("executed").exists()


ROWS = {
    ".tsv": b"text\tlabel\n" + b'the "old dog\tbad\nthe new cat\tgood\n' * 4,
    ".csv": b'text,label\n"the old, ""dog""",0\r\nthe new cat,1\r\n' * 3,
    ".jsonl": b'{"text": "the old dog", "label": 1}\n{"text": "the n\\u00e9w cat", "label": "0"}\n' * 3,
}


@many(500)
@given(mutations=MUTATIONS, suffix=st.sampled_from(sorted(ROWS)))
def test_rows_of_a_task(folder: Path, mutations, suffix: str) -> None:
    path = folder / f"rows{suffix}"
    path.write_bytes(mutate(ROWS[suffix], mutations))
    task = replace(find_task("classification"), text_columns=("text",))

    def read() -> None:
        _, splits = load_rows(task, train_file=path, dev_file=path)
        for text in (text for rows in splits.values() for texts in rows.texts for text in texts):
            text.encode()  # as the tokenizer does

    refused_or_done(read)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ' + "[" * 100_000, "line 1: not JSON"),
        ('{"text": "\\ud800", "label": 1}', "line 1: 'text' holds half a character"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "line 1: not JSON"),
    ],
    ids=["nested", "half", "long"],
)
def test_hostile_rows(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        load_rows(replace(find_task("classification"), text_columns=("text",)), train_file=path, dev_file=path)


def test_labels_of_thousands_of_digits_are_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na\t" + "9" * 5000 + "\nb\t1\n")
    task = replace(find_task("classification"), text_columns=("text",))
    assert load_rows(task, train_file=path, dev_file=path)[0].label_names == ("1", "9" * 5000)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"data": [{"paragraphs": [{"context": "\\ud800", "qas": []}]}]}'])
def test_hostile_squad(tmp_path: Path, content: str) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}-v1.1.json").write_text(content)
    with pytest.raises(UserError, match=r"train-v1\.1\.json.*(not JSON|half a character)"):
        load_questions(find_task("squad"), tmp_path)


PARAGRAPH = {"context": "The old dog sees a house.", "qas": []}
PARAGRAPH["qas"] = [{"id": "1", "question": "Who?", "answers": [{"text": "old dog", "answer_start": 4}]}] * 2  # type: ignore[assignment]


@many(300)
@given(mutations=MUTATIONS)
def test_squad_files(folder: Path, mutations) -> None:
    path = folder / "squad"
    path.mkdir(exist_ok=True)
    content = json.dumps({"version": "1.1", "data": [{"title": "a", "paragraphs": [PARAGRAPH]}]}).encode()
    (path / "train-v1.1.json").write_bytes(content)
    (path / "dev-v1.1.json").write_bytes(mutate(content, mutations))

    def read() -> None:
        for question in load_questions(find_task("squad"), path)["dev"]:
            (question.context + question.question + question.id).encode()

    refused_or_done(read)
