"""What the commands propose to do next is a command that can be pasted."""

import shlex
from pathlib import Path

import pytest

from tamt.cli import COMMANDS, main, parse
from tamt.next_step import next_step

ROWS = {
    "train": {"mask": "runs/my run/mask.safetensors"},
    "finetune": {"output": "runs/my run-sst2"},
    "sweep": {"state": "new"},
    "report": {"report": "runs/report/report.html"},
    "bench": {"fastest": "dense", "sparse_ms": 2.0},
}
SHOWN = [
    ("train --method omp --model m", "tamt finetune --task sst2 --model m --mask 'runs/my run/mask.safetensors'"),
    ("train --method omp --model demo", "tamt finetune --task questions --model demo --mask 'runs/my run/mask.saf"),
    ("finetune --task sst2 --model m", "tamt report runs"),
    (
        "finetune --task classification --model m --train-file t.csv --dev-file d.csv",
        "tamt predict --model 'runs/my run-sst2' --file d.csv --output 'runs/my run-sst2-predictions.jsonl'",
    ),
    ("evaluate --model m --corpus a.txt --mask k", "tamt finetune --task sst2 --model m --mask k"),
    ("evaluate --model m --corpus a.txt b.txt", "tamt train --method tamt-kd --model m --corpus a.txt b.txt"),
    (
        "evaluate --model m --task rte --dev-file d.tsv",
        "tamt predict --model m --file d.tsv --output predictions.jsonl",
    ),
    ("predict --model m --file f --output o.tsv", "head -n 5 o.tsv"),
    ("sweep study.yaml --dry-run --output o", "tamt sweep study.yaml --output o"),
    (
        "sweep study.yaml --dry-run --data-dir d --engine processes --cores 2 --workers 3 --redo",
        "tamt sweep study.yaml --data-dir d --engine processes --cores 2 --workers 3 --redo",
    ),
    ("sweep study.yaml", "tamt report study"),
    ("report runs", "-m webbrowser runs/report/report.html"),
    ("compare a b", "tamt compare a b --output similarities"),
    ("compare a b --model m --output o", "tamt finetune --task sst2 --model m --mask a"),
    ("export --model demo --mask k --output o", "tamt evaluate --model demo --mask k --corpus demo"),
    ("bench m --mask k", "tamt export --model m --mask k --format sparse --output m-sparse"),
    ("bench runs/sst2", "tamt export --model runs/sst2 --format sparse --output sst2-sparse"),
    ("bench demo --sparsity 0.8", "tamt train --method tamt-kd --model demo --corpus demo --sparsity 0.8"),
    ("demo", "tamt report demo"),
]


@pytest.mark.parametrize(("words", "shown"), SHOWN)
def test_the_next_command_can_be_pasted(words: str, shown: str) -> None:
    name, *arguments = words.split()
    options, _ = parse(name, arguments)
    results = {"results": [ROWS.get(name, {})], "failed": [], "output": "study"}
    step = next_step(options, results)
    purpose, command = str(step).splitlines()
    assert purpose.startswith("To ")
    assert shown in command
    if command.split()[0] == "tamt":
        _, name, *arguments = shlex.split(command)
        parse(name, arguments)  # raises if something in it is wrong


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (
            {"fastest": "shrunk by oneDNN", "sparse_ms": None},
            "tamt export --model m --mask k --shrink --output m-small",
        ),
        ({"fastest": "dense", "sparse_ms": None}, "tamt train --method tamt-kd --model m --corpus wikitext-103"),
    ],
)
def test_the_step_after_a_measurement_is_what_the_model_allows(row: dict, shown: str) -> None:
    options, _ = parse("bench", ["m", "--mask", "k"])
    assert str(next_step(options, {"results": [row]})).splitlines()[1].strip() == shown


def test_every_command_has_one() -> None:
    assert {words.split()[0] for words, _ in SHOWN} == COMMANDS.keys()


def test_failed_runs_of_a_study_are_tried_again() -> None:
    options, _ = parse("sweep", ["study.yaml"])
    assert next_step(options, {"failed": ["x"], "output": "o"}).words == ["tamt", "sweep", "study.yaml"]


def test_a_study_that_would_be_refused_has_no_step() -> None:
    options, _ = parse("sweep", ["study.yaml", "--dry-run"])
    rows = [{"state": "new"}, {"state": "refused: was started with lr = 0.1, not 0.2"}]
    assert next_step(options, {"results": rows}) is None


@pytest.mark.parametrize(("output", "folder"), [("/tmp/x", "/tmp/x"), ("x", "x"), ("a/runs/x", "a/runs")])
def test_a_report_is_of_the_run_or_of_the_folder_of_all_runs(output: str, folder: str) -> None:
    options, _ = parse("finetune", ["--task", "sst2", "--model", "m", "--output", output])
    assert next_step(options, {"results": [{"output": output}]}).words == ["tamt", "report", folder]


def test_runs_get_folders_of_their_own_and_the_step_leads_to_them(
    tiny_bert: Path, corpus: Path, cats_and_dogs, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tamt.training.new_output.date", type("Day", (), {"today": lambda: Day()}))
    words = ["train", "--method", "omp", "--model", str(tiny_bert), "--sparsity", "0.5"]
    folders = [f"runs/{tiny_bert.name}-omp-0.5-2022-07-10{end}" for end in ("", "-2", "-3")]
    for folder in folders[:2]:
        assert main(words) == 0
        assert (tmp_path / folder / "mask.safetensors").is_file()
        assert (
            f"To fine-tune the subnetwork:\n  tamt finetune --task sst2 --model {tiny_bert} --mask {folder}/mask.s"
            in (capsys.readouterr().err)
        )
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert "To fine-tune" not in captured.out + captured.err
    mask = f"{folders[0]}/mask.safetensors"
    files = [f"--{name.replace('_', '-')}={path}" for name, path in cats_and_dogs.items()]
    words = ["finetune", "--task", "classification", "--model", str(tiny_bert), *files, "--epochs", "1"]
    for own, name in ((["--mask", mask], "omp-0.5"), ([], "full")):
        assert main([*words, *own]) == 0
        folder = f"runs/{tiny_bert.name}-{name}-classification-2022-07-10"
        assert (tmp_path / folder / "results.json").is_file()
        command = capsys.readouterr().err.splitlines()[-1]
        assert main(shlex.split(command)[1:]) == 0  # tamt predict
        assert len((tmp_path / f"{folder}-predictions.jsonl").read_text().splitlines()) == 16


class Day:
    def isoformat(self) -> str:
        return "2022-07-10"


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path: Path, monkeypatch, tiny_bert: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--method", "tamt-kd", "--model", str(tiny_bert), "--corpus", "none.txt"]) == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_is_resumed_in_a_folder_that_is_named(capsys) -> None:
    for words in (["train", "--method", "omp"], ["finetune", "--task", "sst2"]):
        assert main([*words, "--model", "m", "--resume"]) == 2
        assert "--resume needs the --output of the run to continue" in capsys.readouterr().err
