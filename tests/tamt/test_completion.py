"""Completion in the shell, asked as bash asks it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tamt.cli import COMMANDS, main
from tamt.methods import METHODS

ASK = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
function=$(complete -p tamt | sed 's/.*-F \\([^ ]*\\) tamt/\\1/')
"$function" tamt "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path: Path, capsys: pytest.CaptureFixture):
    """What bash offers for the last of some words, in a folder with a file `mask.safetensors`."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    assert main(["--completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mask.safetensors").touch()

    def ask(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", str(tmp_path / "script"), "tamt", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path / "here")
        return set(done.stdout.split())

    return ask


def test_bash_completes_commands_options_choices_and_files(complete) -> None:
    assert complete("") == set(COMMANDS)
    assert complete("ex") == {"export"}
    assert complete("--c") == {"--completion"}
    assert complete("train", "--sp") == {"--sparsity"}
    assert complete("train", "--method", "") == set(METHODS)
    assert complete("finetune", "--model", "demo", "--task", "sq") == {"squad", "squad2"}
    assert complete("finetune", "--track", "no") == {"none"}
    assert complete("evaluate", "--mask", "ma") == {"mask.safetensors"}
    assert complete("compare", "ma") == {"mask.safetensors"}
    assert complete("train", "--steps", "") == set()  # a number


def test_zsh_completes_every_command(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["--completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef tamt")
    assert all(f"_tamt_{name}_options" in script for name in COMMANDS)
    if shutil.which("zsh"):
        (tmp_path / "script").write_text(script)
        subprocess.run(["zsh", "-n", tmp_path / "script"], check=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bsh"], "--completion has no script for the shell 'bsh'; did you mean bash"),
        ([], "--completion has no script for the shell ''; give bash or zsh"),
    ],
)
def test_another_shell_is_one_sentence(words, sentence, capsys: pytest.CaptureFixture) -> None:
    assert main(["--completion", *words]) == 2
    assert capsys.readouterr().err == f"tamt: error: {sentence}\n"
