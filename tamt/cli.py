"""The command line: every command is a function of the package, its options that function's parameters."""

import inspect
import json
import re
import sys
from argparse import ArgumentError, ArgumentTypeError, HelpFormatter
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser

# What imports torch is imported when its command runs, so that help and mistakes are answered at once.
from tamt import __version__, processes, termination
from tamt.errors import UserError

COMMANDS = {
    "train": ("tamt.search", "search a winning ticket: find the mask of a subnetwork"),
    "finetune": ("tamt.finetune", "fine-tune a subnetwork or the full model on a task"),
    "evaluate": ("tamt.evaluate", "measure a subnetwork on text, or a fine-tuned model on its task"),
    "predict": ("tamt.predict", "predict labels or answers with a fine-tuned model"),
    "sweep": ("tamt.sweep", "do all searches and fine-tunings of a study"),
    "report": ("tamt.report", "draw the paper's figures and tables for your own runs, and a page of them"),
    "compare": ("tamt.compare", "compare masks: similarity and sparsity, per matrix and over all"),
    "export": ("tamt.export", "write a subnetwork as a plain Hugging Face model"),
    "demo": ("tamt.demo", "find and fine-tune winning tickets of a small real model"),
}
SHARED = ("train", "finetune", "evaluate")
"""Commands that several processes can share."""
KINDS = {"int": "a whole number", "float": "a number", "str": "text, so put it in quotes"}
USAGE = "usage: tamt COMMAND [options]    tamt COMMAND --help    tamt --version\n\n" + "\n".join(
    f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, that of the process by default.

    Returns:
        The exit code: 0; 1 where runs of a sweep failed; 2 where the request or its input is wrong, or a file cannot be
        written; 130 after an interrupt; 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if arguments[:1] == ["--version"]:
        print(f"tamt {__version__}")
        return 0
    name = arguments[0] if arguments else ""
    with termination.handled():
        try:
            return _run(name, arguments[1:])
        except UserError as error:
            _tell(f"tamt {name}: error: {error}".replace("tamt : ", "tamt: "))
            return 2
        except OSError as error:
            told = " ".join(str(error).split())
            _tell(f"tamt {name}: error: a file cannot be read or written ({told}); mend that and try again")
            return 2
        except termination.Terminated as error:
            saved = f"step {error.last_good} is saved: the same command with --resume goes on from it"
            general = "what was saved is kept: give the same command again, with --resume if it was a run"
            said = str(error) or f"terminated, and {saved if error.last_good else general}"
            _tell(f"tamt {name}: {said}")
            return termination.EXIT_CODE
        except KeyboardInterrupt as stop:
            said = str(stop) or "interrupted; the last checkpoint is kept, --resume goes on from it"
            _tell(f"tamt {name}: {said}")
            return 130


def _tell(sentence: str) -> None:
    """Say why the command ended; of several processes that share it the first to end does."""
    with termination.deferred():  # a launcher terminates the others at once when one process has ended
        if processes.first_to_tell():
            print(sentence, file=sys.stderr, flush=True)


def _run(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        what = f"there is no command {name!r}" if name else "no command is given"
        raise UserError(f"{what}; the commands are {', '.join(COMMANDS)}")
    if processes.count() > 1 and name not in SHARED:
        raise UserError(
            f"tamt {name} runs in one process, and {processes.count()} were started; give the command by itself "
            f"({', '.join(SHARED)} can be shared)"
        )
    try:
        command: Callable[..., dict] = getattr(import_module(COMMANDS[name][0]), name)
    except RuntimeError as error:  # TAMT_KERNELS asks for what is not there
        raise UserError(str(error)) from error
    options = parse(name, command, arguments)
    as_json = options.pop("json")
    results = command(**options)
    if not processes.first():
        return 0
    if as_json:
        print(json.dumps(results))
    else:
        from tamt.console import show

        show(results["results"])
    return 1 if results.get("failed") else 0


def parse(name: str, command: Callable[..., dict], arguments: list[str]) -> dict[str, Any]:
    """The keyword arguments for `command` from a command line and the YAML file that `--config` names in it.

    Options are the parameters, with dashes; their help is the docstring's. `list` parameters take several values,
    lists of numbers one value with commas, bool ones none; a list or a needed path that comes first takes no flag. A
    parameter without default is required.

    Raises:
        UserError: an option or a value is wrong, here or in the YAML file.
    """
    described = docstring_parser.parse(inspect.getdoc(command) or "")
    help_of = {parameter.arg_name: parameter.description or "" for parameter in described.params}
    parser = ArgumentParser(
        prog=f"tamt {name}",
        description=described.short_description,
        exit_on_error=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file of options; those of the command line win")
    required, lists = [], []
    for number, (key, parameter) in enumerate(inspect.signature(command).parameters.items()):
        flag = "--" + key.replace("_", "-")
        needed = parameter.default is parameter.empty
        kind = _without_none(parameter.annotation)
        help_text = help_of[key].replace("\n", " ").replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=help_text)
        elif number == 0 and get_origin(kind) is list:
            lists.append(key)
            parser.add_argument(key, nargs="+", type=get_args(kind)[0], help=help_text)
        elif number == 0 and needed and kind is Path:
            parser.add_argument(key, type=Path, help=help_text)
        else:
            required += [key] * needed
            default = None if needed else parameter.default
            options: dict[str, Any] = {"type": kind}
            if kind == list[int]:
                options = {"type": _integers, "metavar": "N,N"}
            elif kind == list[float]:
                options = {"type": _numbers, "metavar": "X,X"}
            elif get_origin(kind) is list:
                lists.append(key)
                options = {"type": get_args(kind)[0], "nargs": "+"}
            if default is not None:
                help_text += f" Default: {default}."
            parser.add_argument(flag, default=default, help=help_text + " Required." * needed, **options)
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object on stdout")
    try:
        for file in _config_files(arguments):
            parser.set_defaults(_read_config(file, parser, lists))
        chosen = vars(parser.parse_args(arguments))
    except (ArgumentError, ArgumentTypeError, TypeError, ValueError) as error:
        raise UserError(_sentence(str(error), name)) from error
    for key in required:
        if chosen[key] is None:
            raise UserError(f"--{key.replace('_', '-')} is missing; tamt {name} --help lists the options")
    return {key: value for key, value in chosen.items() if key != "config"}


def _read_config(file: Path, parser: ArgumentParser, lists: list[str]) -> dict[str, Any]:
    """The options in a YAML file by name, of the types that they need; null leaves an option as it is.

    Raises:
        UserError: the file cannot be read or holds no options, or one that should be a list is none.
        ArgumentError, ArgumentTypeError, TypeError, ValueError: a value is wrong.
    """
    from tamt.untrusted import read_yaml

    content = read_yaml(file)
    if not content:
        raise UserError(f"{file} holds no options; write 'name: value' on each line, or leave --config out")
    options = {key: value for key, value in content.items() if value is not None}
    for key in lists:
        if key in options and not isinstance(options[key], list):
            raise UserError(f"{key} in {file} is no list; write {key}: [{options[key]}]")
    known = {action.dest: action for action in parser._actions if action.dest not in {"config", "help"}}
    for key, value in options.items():
        if key not in known:
            raise UserError(f"{key} in {file} is no option; {parser.prog} --help lists the options")
        if known[key].nargs == 0 and not isinstance(value, bool):
            raise UserError(f"{key} in {file} is {value!r}; write true or false")
    checked = parser.parse_object(options, defaults=False, _skip_validation=True)
    parser.validate(checked, skip_required=True)  # what is missing may be in the command line
    return {key: checked[key] for key in options}


def _config_files(arguments: list[str]) -> list[Path]:
    following = [after for word, after in pairwise(arguments) if word == "--config"]
    joined = [word.removeprefix("--config=") for word in arguments if word.startswith("--config=")]
    return [Path(file) for file in following + joined]


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in {Union, UnionType}:
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _integers(value: Any) -> list[int]:
    try:
        return [int(part) for part in _parts(value)]
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{value!r} is no list of whole numbers such as 1,2,3") from error


def _numbers(value: Any) -> list[float]:
    try:
        return [float(part) for part in _parts(value)]
    except (ValueError, TypeError) as error:
        raise ArgumentTypeError(f"{value!r} is not a list of numbers such as 1e-4,3e-4") from error


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else str(value).split(",")


def _sentence(message: str, name: str) -> str:
    """One sentence for a message of the parser, which may run over several lines."""
    key = re.search(r'[Pp]arser key "([\w.]+)"', message)
    value = re.search(r"(?:Given value|Got value): (.*)", message)
    choices = re.search(r"Literal\[(.*?)\]", message)
    option = f"--{key.group(1).replace('_', '-')}" if key else ""
    if option and value:
        kind = re.search(r"<class '(\w+)'>", message)
        wanted = KINDS.get(kind.group(1) if kind else "", "of the kind that it needs")
        if choices:
            wanted = f"one of {choices.group(1)}".replace("'", "")
        return f"{option} {value.group(1)} is not {wanted}; tamt {name} --help lists the options"
    plain = " ".join(message.split())
    return f"{option + ': ' if option else ''}{plain}; tamt {name} --help lists the options"
