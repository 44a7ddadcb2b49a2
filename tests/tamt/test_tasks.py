"""What a task is and how its rows are read: official layouts, strict checks, seeded subsets."""

from collections import Counter
from pathlib import Path

import pytest

from tamt.data import demo, tasks
from tamt.data.tasks import Rows, Task, find_task, load_rows, subset
from tamt.errors import UserError

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
OWN = Task("classification", text_columns=("text",))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def load_own(train: Path, dev: Path, task: Task = OWN) -> tuple[Task, Rows, Rows]:
    return load_rows(task, train_file=train, dev_file=dev)


@pytest.mark.skipif(not (REAL_DATA / "glue" / "SST-2").is_dir(), reason="the real SST-2 is not at ../shared/data")
@pytest.mark.parametrize("folder", ["glue", "glue/SST-2"])
def test_real_sst2_has_its_official_rows(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    task, train, dev = load_rows(find_task("sst2"), data_dir=REAL_DATA / folder)
    assert (len(train), len(dev)) == (67_349, 872)
    assert task.label_names == ("negative", "positive")
    assert dev.texts[0] == ("it 's a charming and often affecting journey . ",)
    assert Counter(dev.labels) == {1: 444, 0: 428}
    assert not capsys.readouterr().err


def test_tsv_is_unquoted_and_lines_end_at_newlines_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'sentence\tlabel\n"a lone quote\t1\nan "inner" one"\t0\r\nline\u2028separator\t1\n'
    write(tmp_path / "SST-2" / "train.tsv", "\ufeff" + text)
    write(tmp_path / "SST-2" / "dev.tsv", text)
    _, train, dev = load_rows(find_task("sst2"), data_dir=tmp_path)
    assert train.texts == [('"a lone quote',), ('an "inner" one"',), ("line\u2028separator",)]
    assert train.labels == dev.labels == [1, 0, 1]
    assert "sst2 has 3 train rows here, officially 67,349" in capsys.readouterr().err


def test_csv_is_quoted_and_jsonl_holds_strings_and_numbers(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", 'label,text\nspam,"two\nlines, ""quoted"""\nham,plain\n')
    dev = write(
        tmp_path / "dev.jsonl", '{"text": "a", "label": "ham", "score": null}\n\n{"text": "b", "label": "spam"}\n'
    )
    task, train_rows, dev_rows = load_own(train, dev)
    assert task.label_names == ("ham", "spam")
    assert train_rows == Rows([('two\nlines, "quoted"',), ("plain",)], [1, 0])
    assert dev_rows == Rows([("a",), ("b",)], [0, 1])


def test_pairs_and_numeric_labels_sort_as_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "".join(f'{{"p": "x", "h": "y", "stars": {n}}}\n' for n in (10, 9, -1)))
    task, rows, _ = load_own(file, file, Task("classification", text_columns=("p", "h"), label_column="stars"))
    assert task.label_names == ("-1", "9", "10")
    assert rows == Rows([("x", "y")] * 3, [2, 1, 0])


def test_demo_dev_rows_are_fixed_and_apart_from_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "s.tsv", "sentence\tlabel\n" + "".join(f"s{i}\t{i % 2}\n" for i in range(1500)))
    monkeypatch.setattr(demo, "snippets_file", lambda: file)
    _, train, dev = load_rows(find_task("demo"))
    assert (len(train), len(dev)) == (500, 1000)
    assert not set(train.texts) & set(dev.texts)
    assert load_rows(find_task("demo"))[2] == dev
    assert dev.texts != [(f"s{i}",) for i in range(1000)], "the file is in an order"


def test_subset_is_seeded_and_keeps_the_share_of_every_label() -> None:
    rows = Rows([(str(i),) for i in range(1000)], [0] * 700 + [1] * 250 + [2] * 50)
    chosen = subset(rows, 101, seed=3)
    assert Counter(chosen.labels) == {0: 71, 1: 25, 2: 5}
    assert len(set(chosen.texts)) == 101
    assert subset(rows, 101, seed=3) == chosen
    assert subset(rows, 101, seed=4) != chosen
    assert subset(rows, 1000, seed=3) == rows


@pytest.mark.parametrize(("samples", "message"), [(11, "more than the 10 train rows"), (1, "fewer than the 2 labels")])
def test_subset_refuses_too_many_and_too_few(samples: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        subset(Rows([("a",)] * 10, [0, 1] * 5), samples, seed=0)


GOOD = "text\tlabel\na\tx\nb\ty\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dev.tsv", b"text\tlabel\na\tx\nb\tz\n", r"dev\.tsv, line 3: the label 'z' is none of x, y"),
        ("dev.tsv", b"text\tlabel\n", r"dev\.tsv has no rows"),
        ("dev.tsv", b"", r"dev\.tsv has no rows"),
        ("dev.tsv", b"text\tlabel\na\tx\nb\n", r"dev\.tsv, line 3: 1 cells under the 2 of the header"),
        ("dev.tsv", b"text\tlabel\na\t\n", r"dev\.tsv, line 2: the label is empty"),
        ("dev.tsv", b"body\tlabel\na\tx\n", r"dev\.tsv, line 2: there is no column 'text' among body, label"),
        ("dev.tsv", b"text\tlabel\na\tx\ncaf\xe9\ty\n", r"dev\.tsv, line 3: not UTF-8 text"),
        ("dev.csv", b'text,label\n"a,x\n', r"dev\.csv, line 2: .*end of data"),
        ("dev.jsonl", b'{"text": "a", "label": "x"}\n{"text": \n', r"dev\.jsonl, line 2: no JSON"),
        ("dev.jsonl", b'["a", "x"]\n', r"dev\.jsonl, line 1: no JSON object"),
        ("dev.txt", b"a\n", r"dev\.txt is no \.tsv, \.csv or \.jsonl file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_own(write(tmp_path / "train.tsv", GOOD), tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "train.tsv", GOOD)
    with pytest.raises(UserError, match=r"there is no file .*absent\.csv"):
        load_own(good, tmp_path / "absent.csv")
    with pytest.raises(UserError, match=r"no train\.tsv and dev\.tsv in .*SST-2"):
        load_rows(find_task("sst2"), data_dir=tmp_path)
    with pytest.raises(UserError, match="give --train-file and --dev-file"):
        load_rows(OWN)
    with pytest.raises(UserError, match="for --task classification, not sst2"):
        load_rows(find_task("sst2"), train_file=good)


def test_one_label_is_no_classification(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "text\tlabel\na\tx\nb\tx\n")
    with pytest.raises(UserError, match="has only the label 'x'"):
        load_own(file, file)


def test_the_hub_out_of_reach_says_what_to_give_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tasks.datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"--data-dir glue_data, with SST-2/train\.tsv"):
        load_rows(find_task("sst2"))


def test_hub_rows_are_taken_with_their_label_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"sentence": ["a", "b"], "label": [0, 1], "idx": [0, 1]}
    splits = {split: tasks.datasets.Dataset.from_dict(columns) for split in ("train", "validation")}
    monkeypatch.setattr(tasks.datasets, "load_dataset", lambda *name: splits)
    _, train, dev = load_rows(find_task("sst2"))
    assert train == dev == Rows([("a",), ("b",)], [0, 1])


def test_unknown_and_later_tasks_are_told_apart() -> None:
    with pytest.raises(UserError, match="there is no task 'sst'; the tasks are sst2, demo, classification"):
        find_task("sst")
    for name in ("cola", "squad"):
        with pytest.raises(UserError, match=f"the task {name} is not there yet"):
            find_task(name)
