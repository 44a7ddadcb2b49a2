"""The command line: results on stdout, one sentence for every mistake, nothing overwritten."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tamt.cli import COMMANDS, main, parse


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def command(tmp_path: Path, tiny_bert: Path, corpus: Path):
    """The words of a working `tamt train`, those given put in place of its own."""

    def words(**options: str | None) -> list[str]:
        chosen = {"method": "omp", "model": str(tiny_bert), "corpus": str(corpus), "max-length": "16"}
        chosen |= {"output": str(tmp_path / "run"), **{key.replace("_", "-"): v for key, v in options.items()}}
        return ["train", *(word for key, value in chosen.items() if value for word in (f"--{key}", value))]

    return words


def test_json_is_one_object_on_stdout_and_all_else_on_stderr(
    command, capsys, tmp_path: Path, tiny_bert, corpus
) -> None:
    for words in (
        command(method="tamt-kd", steps="5"),
        ["evaluate", "--model", str(tiny_bert), "--corpus", str(corpus), "--max-length", "16"],
        ["compare", str(tmp_path / "run" / "mask.safetensors"), str(tmp_path / "run" / "mask.safetensors")],
    ):
        assert main([*words, "--json"]) == 0
        output = capsys.readouterr().out
        assert len(output.splitlines()) == 1
        assert isinstance(json.loads(output)["results"], list)


def test_tables_are_shown_without_json(command, capsys) -> None:
    assert main(command()) == 0
    assert "kd_loss" in capsys.readouterr().out


REQUIRED = {
    "train": ["--method", "omp", "--model", "m", "--output", "o"],
    "finetune": ["--task", "sst2", "--model", "m", "--output", "o"],
    "evaluate": ["--model", "m", "--corpus", "c"],
    "predict": ["--model", "m", "--file", "f", "--output", "o"],
    "sweep": ["study.yaml"],
    "report": ["runs"],
    "compare": ["a", "b"],
    "export": ["--model", "m", "--mask", "k", "--output", "o"],
    "bench": ["m"],
    "demo": [],
}

WITHOUT_TORCH = """
import json, sys

class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch", "transformers", "accelerate", "datasets", "tamt_kernels"}:
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
from tamt.cli import main

for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    print(" ".join(words), code, file=sys.stderr)
"""


def test_help_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("seed: yes\n")
    helped = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    wrong = [["trian"]]
    for name in COMMANDS:
        wrong += [[name, *REQUIRED[name], "--colour", "red"], [name, *REQUIRED[name], "--config", "none.yaml"]]
        wrong += [[name]] if REQUIRED[name] else []
    train, finetune = ["train", *REQUIRED["train"]], ["finetune", *REQUIRED["finetune"]]
    wrong += [[*train, "--sparsity", "2"], [*train, "--config", str(tmp_path / "options.yaml")]]
    wrong += [[*train, *words] for words in (["--method", "kd"], ["--initial", "x"], ["--scores", "x"], ["--lr", "x"])]
    wrong += [[*train, "--method", "imp"], [*train, "--method", "tamt", "--corpus", "c", "--objective", "x"]]
    wrong += [[*finetune, "--task", "sst"], [*finetune, "--precision", "fp8"], ["sweep", "s", "--engine", "x"]]
    words = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(helped + wrong)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stderr.splitlines() if not line.startswith("tamt")]
    assert codes == [f"{' '.join(line)} {code}" for lines, code in ((helped, 0), (wrong, 2)) for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"tamt {name}" in text
    assert "--json" in text


def test_overview_and_version(capsys) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tamt 0.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "1.2"}, "--sparsity 1.2 is not between 0 and 1"),
        ({"sparsity": "0"}, "--sparsity 0 is not between 0 and 1"),
        ({"sparsity": "nan"}, "--sparsity nan is not"),
        ({"sparsity": "half"}, "--sparsity half is not"),
        ({"method": "magic"}, "--method magic is not one of tamt-mlm"),
        ({"method": None}, "--method is missing"),
        ({"method": "tamt-kd", "steps": "0"}, "--steps 0 must be 1 or more"),
        ({"method": "tamt-kd", "lr": "-1"}, "--lr -1 must be more than 0"),
        ({"method": "tamt-kd", "lr": "inf"}, "--lr inf must be more than 0 and finite"),
        ({"method": "tamt-kd", "corpus": None}, "tamt-kd needs text"),
        ({"method": "imp", "steps": "9"}, "too few for IMP"),
        ({"method": "imp", "save_at": "3"}, "--save-at is for mask training"),
        ({"method": "imp", "ranking": "abs"}, "--ranking is for mask training, not imp; leave it out"),
        ({"method": "omp", "threshold_every": "5"}, "--threshold-every is for mask training, not omp"),
        ({"method": "wanda", "lr": "1e-3"}, "--lr is for methods that train, not wanda; leave it out"),
        ({"method": "tamt-kd", "steps": "5", "save_at": "3,9"}, "--save-at 9 is after the last step"),
        ({"method": "tamt-kd", "save_at": "x"}, "--save-at x is not a list of whole numbers such as 1,2,3"),
        ({"corpus": "/no/such/file"}, "no corpus file /no/such/file"),
        ({"model": "/no/such/model"}, "'/no/such/model' is no folder that is there"),
        ({"model": "no-such/model"}, "'no-such/model' is no folder"),
        ({"max_length": "1000"}, "--max-length 1000 is more than the 32 positions"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"colour": "red"}, "--colour is not an option; "),
        ({"sparsty": "0.5"}, "--sparsty is not an option; did you mean --sparsity"),
        ({"seed": "-1"}, "--seed -1 is negative"),
        ({"seed": "1.5"}, "--seed 1.5 is not a whole number"),
        ({"config": "/no/such.yaml"}, "/no/such.yaml"),
        ({"head": "/no/head"}, "the MLM head /no/head cannot be read"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(options, message, command, capsys, tmp_path: Path) -> None:
    if "precision" in options and torch.cuda.is_available():
        pytest.skip("fp16 is no mistake on a GPU")
    assert main(command(**options)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_output_that_holds_another_run_is_left_as_it_is(command, capsys, tmp_path: Path) -> None:
    assert main(command()) == 0
    before = tree(tmp_path)
    capsys.readouterr()
    for words in (command(), command(sparsity="0.5"), [*command(sparsity="0.5"), "--resume"], [*command(), "--resume"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(command(model="/no/such/model")) == 2  # told before anything is loaded
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main(command(output=str(tmp_path / "file"))) == 2
    (tmp_path / "file").unlink()
    assert tree(tmp_path) == before


def test_a_mask_for_another_model_or_cut_short_is_refused(command, capsys, tmp_path, tiny_roberta, tiny_bert, corpus):
    assert main(command()) == 0
    mask = tmp_path / "run" / "mask.safetensors"
    torch.save({"bert.other.weight": torch.ones(3, 3, dtype=torch.bool)}, tmp_path / "other.pt")
    (tmp_path / "cut.safetensors").write_bytes(mask.read_bytes()[:-5])
    capsys.readouterr()
    for path, message in {"other.pt": "another model", "cut.safetensors": "damaged", "none": "no mask file"}.items():
        words = ["--corpus", str(corpus), "--max-length", "16", "--mask", str(tmp_path / path)]
        assert main(["evaluate", "--model", str(tiny_bert), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_model_with_no_prunable_matrix(command, capsys, tmp_path: Path, tiny_bert: Path) -> None:
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=28)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    capsys.readouterr()
    assert main(command(model=str(folder))) == 2
    error = capsys.readouterr().err
    assert "is a GPT2 and no masked language model, so it has no prunable matrix" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["batch-size", "blocks", "max-length"])
def test_evaluate_refuses_sizes_of_0(option, capsys, tiny_bert: Path, corpus: Path) -> None:
    assert main(["evaluate", "--model", str(tiny_bert), "--corpus", str(corpus), f"--{option}", "0"]) == 2
    assert capsys.readouterr().err == (
        f"tamt evaluate: error: --{option} 0 must be 1 or more; raise it or leave it out\n"
    )


def test_config_holds_the_options_and_the_command_line_wins(command, tmp_path: Path, capsys, corpus: Path) -> None:
    (tmp_path / "options.yaml").write_text(f"sparsity: 0.5\nseed: 4\ncorpus: [{corpus}]\nsave_at: [2, 3]\n")
    words = [*command(method="tamt-kd", corpus=None, steps="4"), "--config", str(tmp_path / "options.yaml")]
    assert main([*words, "--seed", "6", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    assert row["sparsity"] == pytest.approx(0.5, abs=0.002)
    assert row["seed"] == 6
    assert (tmp_path / "run" / "masks" / "step-3.safetensors").is_file()
    # The config of a run gives that run again.
    again = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--output", str(tmp_path / "again"), "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["kd_loss"] == row["kd_loss"]
    (tmp_path / "unknown.yaml").write_text("sparsty: 0.5\n")
    assert main([*command(), "--config", str(tmp_path / "unknown.yaml")]) == 2
    assert "sparsty" in capsys.readouterr().err


def test_a_list_that_is_given_twice_is_one_list() -> None:
    words = ["--method", "tamt-kd", "--model", "m", "--corpus", "a", "b", "--seed", "1", "--corpus", "c", "--seed", "2"]
    options, _ = parse("train", words)
    assert options.corpus == ["a", "b", "c"]
    assert options.seed == 2


@pytest.mark.parametrize(("value", "shown"), [("text.txt", "text.txt"), ("7", "7"), ("{a: 1}", "{'a': 1}")])
def test_a_list_in_a_config_is_written_as_one(value, shown, command, tmp_path: Path, capsys) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"corpus: {value}\n")
    assert main([*command(corpus=None), "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"tamt train: error: corpus in {file} is not a list; write corpus: [{shown}]\n"


@pytest.mark.parametrize("null", ["", " null", " ~"])
@pytest.mark.parametrize("name", COMMANDS)
def test_null_behind_an_option_of_a_config_leaves_it_as_it_is(name: str, null: str, tmp_path: Path) -> None:
    words, file = REQUIRED[name], tmp_path / "options.yaml"
    expected = parse(name, words)
    for option in fields(COMMANDS[name].options):
        file.write_text(f"{option.name}:{null}\n")
        assert parse(name, [*words, "--config", str(file)]) == expected, option.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "{file} has no options; write 'name: value' on each line, or leave --config out"),
        ("# nothing\n", "{file} has no options; write"),
        ("seed: 1\nsparsity: 0.5\nseed: 2\n", "(duplicate key seed in line 3); correct it"),
        ("resume: 3\n", "resume in {file} is 3; write true or false"),
        ("prune_pooler: 'no'\n", "prune_pooler in {file} is 'no'; write true or false"),
        ("config: other.yaml\n", "config in {file} is not an option"),
        ("sparsty: 0.5\n", "sparsty in {file} is not an option; did you mean sparsity"),
        ("output: [a]\n", "--output ['a'] is not a path"),
        ("prune_pooler: true\nlr: 5e-5\nhead: x\nsteps: 2.5\n", "--steps 2.5 is not a whole number"),
        ("model: yes\n", "--model True is not text, so put it in quotes"),
        ("seed: yes\n", "--seed True is not a whole number"),
        ("save_at: [1, null]\n", "--save-at [1, None] is not a list of whole numbers such as 1,2,3"),
        ("sparsity:\nseed: x\n", "--seed x is not a whole number"),
    ],
)
def test_a_mistake_in_a_config_is_one_line(content, message, command, tmp_path: Path, capsys) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(content)
    assert main([*command(), "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert message.format(file=file) in error
    assert error.count("\n") == 1


def test_kernels_that_are_not_there_are_one_line_too() -> None:
    words = [sys.executable, "-m", "tamt", "compare", "a", "b"]
    environment = {**os.environ, "TAMT_KERNELS": "magic"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("tamt compare: error: TAMT_KERNELS is 'magic'")
    assert done.stderr.count("\n") == 1


def test_the_command_is_installed_and_a_mistake_shows_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tamt", "train", "--method", "omp"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "tamt train: error: --model is missing; tamt train --help lists the options\n"
