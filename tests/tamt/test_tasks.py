"""What a task is and how its rows are read: official layouts, strict checks, seeded subsets."""

from collections import Counter
from pathlib import Path

import datasets
import pytest

from tamt.data import assets as demo
from tamt.data.glue import load_rows
from tamt.data.rows import Rows, read_file, subset
from tamt.data.tasks import Task, find_task
from tamt.runtime.errors import UserError

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
OWN = Task("classification", text_columns=("text",))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def load_own(train: Path, dev: Path, task: Task = OWN) -> tuple[Task, Rows, Rows]:
    task, rows = load_rows(task, train_file=train, dev_file=dev)
    return task, rows["train"], rows["dev"]


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real data are not at ../shared/data")
@pytest.mark.parametrize(
    ("name", "folder", "first", "labels"),
    [
        ("sst2", "glue/SST-2", ("it 's a charming and often affecting journey . ",), {1: 444, 0: 428}),
        ("cola", "glue", ("The sailors rode the breeze clear of the rocks.",), {1: 721, 0: 322}),
        ("rte", "glue", None, {0: 146, 1: 131}),
        ("stsb", "glue", ("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing."), None),
    ],
)
def test_real_glue_has_its_official_rows(
    name: str, folder: str, first: tuple | None, labels: dict | None, capsys: pytest.CaptureFixture[str]
) -> None:
    task, rows = load_rows(find_task(name), data_dir=REAL_DATA / folder)
    assert {split: len(found) for split, found in rows.items()} == task.splits
    assert first in (None, rows["dev"].texts[0])
    if labels:
        assert Counter(rows["dev"].labels) == labels
    else:
        assert rows["dev"].labels[:4] == [5.0, 4.75, 5.0, 2.4]
    assert not capsys.readouterr().err


MNLI = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def test_every_layout_of_glue_is_read(tmp_path: Path) -> None:
    write(tmp_path / "CoLA" / "train.tsv", 'gj04\t0\t*\tHe "left\nad03\t1\t\tHe left\n')
    write(tmp_path / "CoLA" / "dev.tsv", "gj04\t1\t\tShe left\n")
    for split in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path / "MNLI" / f"{split}.tsv", MNLI + f"0\t31\ta {split}\tb\tneutral\tcontradiction\n")
    for split in ("train", "dev"):
        write(tmp_path / "STS-B" / f"{split}.tsv", STSB + '0\tnews\tf\t2015\t1\tx\ty\t"lone\tb "\t3.667\n')
        write(tmp_path / "MRPC" / f"{split}.tsv", MRPC + '1\t11\t12\tHe said "\tHe\r\n0\t13\t14\ta\tb\r\n')
        write(tmp_path / "RTE" / f"{split}.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n")
    found = {name: load_rows(find_task(name), data_dir=tmp_path)[1] for name in ("cola", "mnli", "stsb", "mrpc", "rte")}
    assert found["cola"] == {"train": Rows([('He "left',), ("He left",)], [0, 1]), "dev": Rows([("She left",)], [1])}
    assert found["mnli"] == {
        split: Rows([(f"a {split}", "b")], [2]) for split in ("train", "dev_matched", "dev_mismatched")
    }
    assert found["stsb"]["train"] == found["stsb"]["dev"] == Rows([('"lone', 'b "')], [3.667])
    assert found["mrpc"]["train"] == Rows([('He said "', "He"), ("a", "b")], [1, 0])
    assert found["rte"]["dev"] == Rows([("a", "b")], [1])


def test_microsofts_mrpc_is_trained_on_without_its_dev_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = write(tmp_path / "msr_paraphrase_train.txt", MRPC + "1\t11\t12\ta\tb\n0\t13\t14\tc\td\n")
    write(tmp_path / "dev.tsv", MRPC + "0\t13\t14\tc\td\n")
    assert load_rows(find_task("mrpc"), data_dir=tmp_path)[1] == {
        "train": Rows([("a", "b")], [1]),
        "dev": Rows([("c", "d")], [0]),
    }
    assert f"1 of the 2 rows of {train} are in dev.tsv" in " ".join(capsys.readouterr().err.split())
    write(tmp_path / "dev.tsv", train.read_text(encoding="utf-8"))
    with pytest.raises(UserError, match=r"msr_paraphrase_train\.txt has no rows that are not in dev\.tsv"):
        load_rows(find_task("mrpc"), data_dir=tmp_path)
    write(tmp_path / "dev.tsv", "Quality\t#1 String\t#2 String\n1\ta\tb\n")
    with pytest.raises(UserError, match="has no column '#1 ID'"):
        load_rows(find_task("mrpc"), data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "dev", "message"),
    [
        ("stsb", STSB + "0\tnews\tf\t2015\t1\tx\ty\ta\tb\t5.2\n", r"dev\.tsv, line 2: the score '5.2' is not a number"),
        ("stsb", STSB + "0\tnews\tf\t2015\t1\tx\ty\ta\tb\tnan\n", r"dev\.tsv, line 2: the score 'nan' is not a number"),
        (
            "stsb",
            STSB + "0\tnews\tf\t2015\t1\tx\ty\ta\tb\thigh\n",
            r"line 2: the score 'high' is not a number from 0 to 5",
        ),
        ("cola", "gj04\t1\tHe left\n", r"dev\.tsv, line 1: 3 cells under the 4 of the layout \(source, label, star"),
        ("cola", "gj04\t2\t\tHe left\n", r"dev\.tsv, line 1: the label '2' is not one of unacceptable, acceptable"),
        (
            "rte",
            "index\tpremise\tsentence2\tlabel\n0\ta\tb\tentailment\n",
            "no column 'sentence1' .*; give the file of GLUE",
        ),
        ("rte", "index\tsentence1\tsentence2\tlabel\n", r"dev\.tsv has no rows"),
        ("mrpc", MRPC + "1\t1\t2\ta\n", r"dev\.tsv, line 2: 4 cells under the 5"),
    ],
)
def test_a_bad_glue_file_is_named_with_its_line(tmp_path: Path, name: str, dev: str, message: str) -> None:
    good = {
        "stsb": STSB + "0\tnews\tf\t2015\t1\tx\ty\ta\tb\t5\n",
        "cola": "gj04\t1\t\tHe left\n",
        "rte": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        "mrpc": MRPC + "1\t1\t2\ta\tb\n",
    }
    write(tmp_path / "train.tsv", good[name])
    write(tmp_path / "dev.tsv", dev)
    with pytest.raises(UserError, match=message):
        load_rows(find_task(name), data_dir=tmp_path)


def test_tsv_is_unquoted_and_lines_end_at_newlines_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'sentence\tlabel\n"a lone quote\t1\nan "inner" one"\t0\r\nline\u2028separator\t1\n'
    write(tmp_path / "SST-2" / "train.tsv", "\ufeff" + text)
    write(tmp_path / "SST-2" / "dev.tsv", text)
    train, dev = load_rows(find_task("sst2"), data_dir=tmp_path)[1].values()
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
    train, dev = load_rows(find_task("demo"))[1].values()
    assert (len(train), len(dev)) == (500, 1000)
    assert not set(train.texts) & set(dev.texts)
    assert load_rows(find_task("demo"))[1]["dev"] == dev
    assert dev.texts != [(f"s{i}",) for i in range(1000)], "the file is in an order"


def test_subset_is_seeded_and_keeps_the_share_of_every_label() -> None:
    labels = [0] * 700 + [1] * 250 + [2] * 50
    chosen = subset(labels, 1000, 101, seed=3)
    assert Counter(labels[i] for i in chosen) == {0: 71, 1: 25, 2: 5}
    assert len(set(chosen)) == 101
    assert subset(labels, 1000, 101, seed=3) == chosen
    assert subset(labels, 1000, 101, seed=4) != chosen
    assert subset(labels, 1000, 1000, seed=3) == list(range(1000))
    plain = subset(None, 1000, 101, seed=3)
    assert len(set(plain)) == 101
    assert plain == subset(None, 1000, 101, seed=3) != subset(None, 1000, 101, seed=4)


def test_subset_has_every_label() -> None:
    labels = [0] * 97 + [1, 2, 2]
    assert Counter(labels[i] for i in subset(labels, 100, 3, seed=0)) == {0: 1, 1: 1, 2: 1}
    assert Counter(labels[i] for i in subset(labels, 100, 10, seed=0)) == {0: 8, 1: 1, 2: 1}


@pytest.mark.parametrize(("samples", "message"), [(11, "more than the 10 train rows"), (1, "fewer than the 2 labels")])
def test_subset_refuses_too_many_and_too_few(samples: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        subset([0, 1] * 5, 10, samples, seed=0)


GOOD = "text\tlabel\na\tx\nb\ty\n"


def test_empty_lines_of_one_column_are_rows(tmp_path: Path) -> None:
    for text in ("text\nfirst\n\nthird\n\n", "\r\ntext\r\nfirst\r\n\r\nthird"):
        found = read_file(write(tmp_path / "new.tsv", text), OWN, need_labels=False)
        assert [row["text"] for _, row in found] == ["first", "", "third"]
    two = read_file(write(tmp_path / "two.tsv", "text\tlabel\n\na\tx\n"), OWN)
    assert [row["text"] for _, row in two] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dev.tsv", b"text\tlabel\na\tx\nb\tz\n", r"dev\.tsv, line 3: the label 'z' is not one of x, y"),
        ("dev.tsv", b"text\tlabel\n", r"dev\.tsv has no rows"),
        ("dev.tsv", b"", r"dev\.tsv has no rows"),
        ("dev.tsv", b"text\tlabel\na\tx\nb\n", r"dev\.tsv, line 3: 1 cells under the 2 of the header"),
        ("dev.tsv", b"text\tlabel\na\t\n", r"dev\.tsv, line 2: the label is empty"),
        ("dev.tsv", b"body\tlabel\na\tx\n", r"dev\.tsv, line 2: there is no column 'text' among body, label"),
        ("dev.tsv", b"text\tlabel\na\tx\ncaf\xe9\ty\n", r"dev\.tsv, line 3: not UTF-8 text"),
        ("dev.csv", b'text,label\n"a,x\n', r"dev\.csv, line 2: .*end of data"),
        ("dev.jsonl", b'{"text": "a", "label": "x"}\n{"text": \n', r"dev\.jsonl, line 2: not JSON"),
        ("dev.jsonl", b'["a", "x"]\n', r"dev\.jsonl, line 1: not a JSON object"),
        ("dev.txt", b"a\n", r"dev\.txt is not a \.tsv, \.csv or \.jsonl file"),
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
    with pytest.raises(UserError, match=r"no train\.tsv, dev\.tsv in .*SST-2"):
        load_rows(find_task("sst2"), data_dir=tmp_path)
    with pytest.raises(UserError, match="give --train-file and --dev-file"):
        load_rows(OWN)
    with pytest.raises(UserError, match="for --task classification or regression, not sst2"):
        load_rows(find_task("sst2"), train_file=good)


@pytest.mark.parametrize(
    ("name", "folder", "header", "rows", "texts", "labels"),
    [
        (
            "qnli",
            "QNLI",
            "index\tquestion\tsentence\tlabel",
            ["0\tWhat?\tThat.\tnot_entailment", "1\tWho?\tShe.\tentailment"],
            ("What?", "That."),
            [1, 0],
        ),
        (
            "qqp",
            "QQP",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            ["0\t1\t2\tHow?\tWhy?\t0", "1\tbroken", "2\t5\t6\tWho?\tWho?\t1"],
            ("How?", "Why?"),
            [0, 1],
        ),
        (
            "wnli",
            "WNLI",
            "index\tsentence1\tsentence2\tlabel",
            ["0\tIt fell.\tA cup fell.\t1", "1\tIt fell.\tA table fell.\t0"],
            ("It fell.", "A cup fell."),
            [1, 0],
        ),
    ],
)
def test_the_rest_of_glue_is_read(tmp_path: Path, name, folder, header, rows, texts, labels, capsys) -> None:
    for split in ("train", "dev"):
        write(tmp_path / folder / f"{split}.tsv", "\n".join([header, *rows]) + "\n")
    task, found = load_rows(find_task(name), data_dir=tmp_path)
    assert found["dev"].texts[0] == texts
    assert list(found["train"].labels) == labels
    assert ("lines of" in capsys.readouterr().err) == (name == "qqp")
    assert task.metrics[0] == "accuracy"


REGRESSION = Task("regression", kind="regression", text_columns=("text",), metrics=("pearson", "spearman"))


def test_a_regression_of_ones_own_takes_any_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "text,label\na,-3.5\nb,1e2\n")
    task, train, _ = load_own(file, file, REGRESSION)
    assert list(train.labels) == [-3.5, 100.0]
    assert task.label_names is None


@pytest.mark.parametrize("label", ["good", "nan", "inf", "1.1e12", "-1e39"])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, label: str) -> None:
    file = write(tmp_path / "rows.csv", f"text,label\na,1\nb,{label}\n")
    with pytest.raises(
        UserError, match=f"line 3: the score '{label}' is not a number from -1e\\+12 to 1e\\+12; correct it, or div"
    ):
        load_own(file, file, REGRESSION)


def test_one_label_is_no_classification(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "text\tlabel\na\tx\nb\tx\n")
    with pytest.raises(UserError, match="has only the label 'x'"):
        load_own(file, file)


def test_the_hub_out_of_reach_says_what_to_give_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"--data-dir glue_data, with SST-2/train\.tsv"):
        load_rows(find_task("sst2"))


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("sst2", {"sentence": ["a", "b"], "label": [0, 1]}, Rows([("a",), ("b",)], [0, 1])),
        ("mnli", {"premise": ["a"], "hypothesis": ["b"], "label": [2]}, Rows([("a", "b")], [2])),
        ("stsb", {"sentence1": ["a"], "sentence2": ["b"], "label": [3.5]}, Rows([("a", "b")], [3.5])),
        ("mrpc", {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}, Rows([("a", "b")], [1])),
        ("rte", {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}, Rows([("a", "b")], [1])),
        ("cola", {"sentence": ["a"], "label": [1]}, Rows([("a",)], [1])),
    ],
)
def test_hub_rows_are_taken_with_their_label_ids(
    name: str, columns: dict, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(*names: str) -> dict:
        asked.append(names)
        dev = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
        return {split: datasets.Dataset.from_dict({**columns, "idx": [0] * len(rows)}) for split in ("train", *dev)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task, found = load_rows(find_task(name))
    assert asked == [("nyu-mll/glue", name)]
    assert found == dict.fromkeys(task.splits, rows)


def test_an_unknown_task_is_refused_with_the_list_of_tasks() -> None:
    with pytest.raises(
        UserError,
        match="no task 'sst'; the tasks are cola, sst2, rte, mnli, mrpc, stsb, qnli, qqp, wnli, squad, squad2, demo, ",
    ):
        find_task("sst")
