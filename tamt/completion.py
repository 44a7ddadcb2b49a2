"""Completion of commands, options, choices and files in bash and zsh, by shtab."""

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import get_args

from tamt.options.base import Options, choices_of, without_none
from tamt.runtime.errors import UserError, did_you_mean

SHELLS = ("bash", "zsh")
FOLDER_OR_NAME = ("model", "corpus", "dev_corpus", "initial")
"""Options of type text that may name files."""


def completion(shell: str, commands: Mapping[str, tuple[ArgumentParser, type[Options]]]) -> str:
    """The script that completes `tamt` in a shell; it starts no Python when a key is pressed.

    Args:
        shell: bash or zsh.
        commands: the parser and the options of each command.

    Raises:
        UserError: there is no script for the shell.
    """
    if shell not in SHELLS:
        hint = did_you_mean(shell, SHELLS, f"give {' or '.join(SHELLS)}")
        raise UserError(f"--completion has no script for the shell {shell!r}; {hint}")
    import shtab

    whole = ArgumentParser("tamt")
    whole.add_argument("--version", action="store_true", help="print the version")
    whole.add_argument("--completion", choices=SHELLS, help="print the script for a shell")
    subparsers = whole.add_subparsers()
    for name, (parser, kind) in commands.items():
        _add_values(parser, kind)
        subparsers.add_parser(
            name, parents=[parser], add_help=False, description=parser.description, help=parser.description
        )
    return str(shtab.complete(whole, shell))


def _add_values(parser: ArgumentParser, kind: type[Options]) -> None:
    """Add to the options of a parser what their values may be: choices, or files."""
    import shtab

    kinds = {field.name: without_none(field.type) for field in fields(kind)}
    for action in parser._actions:
        value = kinds.get(action.dest)
        if choices := choices_of(value):
            action.choices = choices
        elif action.dest == "config" or action.dest in FOLDER_OR_NAME or Path in (value, *get_args(value)):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
