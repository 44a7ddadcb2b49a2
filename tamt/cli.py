"""The command line. Each command is a function that takes its options as a dataclass."""

import json
import sys
from argparse import SUPPRESS, ArgumentError, ArgumentParser
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from tamt.options.base import Options, choices_of, help_of, without_none
from tamt.options.bench import BenchOptions
from tamt.options.compare import CompareOptions
from tamt.options.demo import DemoOptions
from tamt.options.evaluate import EvaluateOptions
from tamt.options.export import ExportOptions
from tamt.options.finetune import FinetuneOptions
from tamt.options.predict import PredictOptions
from tamt.options.report import ReportOptions
from tamt.options.sweep import SweepOptions
from tamt.options.train import TrainOptions
from tamt.options.values import WrongValueError, convert, has_commas, takes_several
from tamt.runtime import processes, termination
from tamt.runtime.errors import UserError, did_you_mean
from tamt.version import __version__


class Command(NamedTuple):
    """A command: the module with its function, its options, a summary, and whether several processes can share it.

    The module imports torch, so it is imported when the command runs; help and mistakes need no torch.
    """

    module: str
    options: type[Options]
    summary: str
    shared: bool = False


COMMANDS = {
    "train": Command("tamt.search.train", TrainOptions, "search a winning ticket: find the mask of a subnetwork", True),
    "finetune": Command(
        "tamt.finetuning.finetune", FinetuneOptions, "fine-tune a subnetwork or the full model on a task", True
    ),
    "evaluate": Command(
        "tamt.commands.evaluate",
        EvaluateOptions,
        "measure a subnetwork on text, or a fine-tuned model on its task",
        True,
    ),
    "predict": Command("tamt.commands.predict", PredictOptions, "predict labels or answers with a fine-tuned model"),
    "sweep": Command("tamt.sweep.sweep", SweepOptions, "run all searches and fine-tunings of a study"),
    "report": Command(
        "tamt.report.report", ReportOptions, "draw the paper's figures and tables for your own runs, and an HTML page"
    ),
    "compare": Command(
        "tamt.report.compare", CompareOptions, "compare masks: similarity and sparsity, per matrix and overall"
    ),
    "export": Command(
        "tamt.commands.export", ExportOptions, "write a subnetwork as a Hugging Face model, dense or sparse"
    ),
    "bench": Command("tamt.commands.bench", BenchOptions, "measure what a model with zeros gains when it runs sparse"),
    "demo": Command("tamt.demo", DemoOptions, "find and fine-tune winning tickets of a small real model"),
}
FLAGS = ("--help", "--version", "--completion")
USAGE = (
    "usage: tamt COMMAND [options]    tamt COMMAND --help    tamt --version    tamt --completion bash|zsh\n\n"
    + "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, by default that of the process.

    Returns:
        The exit code: 0; 1 if runs of a sweep failed; 2 if the request or its input is wrong, or a file cannot be
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
    prefix = "tamt" if not name or name.startswith("-") else f"tamt {name}"
    with termination.handled():
        try:
            return _run(name, arguments[1:])
        except UserError as error:
            _report(f"{prefix}: error: {error}")
            return 2
        except OSError as error:
            cause = " ".join(str(error).split())
            _report(f"{prefix}: error: a file cannot be read or written ({cause}); correct that and try again")
            return 2
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, termination.Terminated) and not termination.interrupted()
            ended = "terminated" if terminated else "interrupted"
            kept = "saved files are kept; repeat the command, with --resume for a run"
            if step := getattr(stop, "last_good", 0):
                kept = f"step {step} is saved; repeat the command with --resume to continue from it"
            message = str(stop) or f"{ended}; {kept}"
            _report(f"{prefix}: {message}")
            return termination.EXIT_CODE if terminated else termination.EXIT_CODE_OF_INTERRUPT


def _report(sentence: str) -> None:
    """Print why the command ended. Of several processes that share it, the first one to end prints."""
    with termination.deferred():  # a launcher terminates the others when one process has ended
        if processes.first_to_tell():
            print(sentence, file=sys.stderr, flush=True)


def _run(name: str, arguments: list[str]) -> int:
    if name == "--completion":
        from tamt.completion import completion

        commands = {known: (parser_of(known, command.options), command.options) for known, command in COMMANDS.items()}
        print(completion(" ".join(arguments), commands))
        return 0
    if name not in COMMANDS:
        known = f"the commands are {', '.join(COMMANDS)}"
        raise UserError(
            f"there is no command {name!r}; {did_you_mean(name, (*COMMANDS, *FLAGS), known)}"
            if name
            else f"no command is given; {known}"
        )
    if processes.count() > 1 and not COMMANDS[name].shared:
        shared = ", ".join(other for other, command in COMMANDS.items() if command.shared)
        raise UserError(
            f"tamt {name} runs in one process, and {processes.count()} were started; start one process "
            f"({shared} can be shared)"
        )
    options, as_json = parse(name, arguments)
    try:
        function: Callable[[Options], dict] = getattr(import_module(COMMANDS[name].module), name)
    except RuntimeError as error:  # TAMT_KERNELS names a backend that is not there
        raise UserError(str(error)) from error
    results = function(options)
    if not processes.first():
        return 0
    if as_json:
        print(json.dumps(results))
    else:
        from tamt.next_step import next_step
        from tamt.runtime.console import say, show

        show(results["results"])
        if step := next_step(options, results):
            say(str(step))
    return 1 if results.get("failed") else 0


def parse(name: str, arguments: list[str]) -> tuple[Any, bool]:
    """The options of a command from its command line, and from the YAML files that `--config` names.

    An option is a field of the command's dataclass, with dashes. A list takes several words, a list of numbers one word
    with commas, a bool none. A first field that is a list or a required path is written without a flag.

    Returns:
        The options, and whether `--json` was given.

    Raises:
        UserError: an option or a value is wrong or missing.
    """
    kind = COMMANDS[name].options
    kinds: dict[str, Any] = {field.name: field.type for field in fields(kind)} | {"json": bool}
    written = _written(kind)
    hint = f"tamt {name} --help lists the options"
    try:
        found, unknown = parser_of(name, kind).parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{error}; {hint}") from error
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word} belongs to no option; {hint}")
        raise UserError(f"{word} is not an option; {did_you_mean(word, written.values(), hint)}")
    given = vars(found)
    chosen: dict[str, Any] = {}
    in_files = [_read_config(Path(file), kinds, hint) for file in given.pop("config", [])]
    try:
        for key, value in (item for options in (*in_files, given) for item in options.items()):
            chosen[key] = convert(kinds[key], value)
    except WrongValueError as error:
        raise UserError(f"{written[key]} {error}; {hint}") from error
    for field in fields(kind):
        if field.default is MISSING and field.name not in chosen:
            flag = written[field.name]
            raise UserError(f"{flag} is missing; {hint}" if flag.startswith("-") else f"no {flag} given; {hint}")
    as_json = chosen.pop("json", False)
    return kind(**chosen), as_json


class _Parser(ArgumentParser):
    """Raises ArgumentError for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(None, message)


def parser_of(name: str, kind: type[Options]) -> ArgumentParser:
    """The parser of a command. It returns the words of the options that are given, and no defaults."""
    description, help_texts = help_of(kind)
    parser = _Parser(
        prog=f"tamt {name}",
        usage=_usage(name, kind),
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        argument_default=SUPPRESS,
    )
    parser.add_argument(
        "--config", action="append", help="a YAML file with options; the command line overrides it", metavar="FILE"
    )
    written = _written(kind)
    for field in fields(kind):
        name_or_flag, help_text = written[field.name], help_texts.get(field.name, "").replace("%", "%%")
        several = "+" if takes_several(field.type) else None
        if field.type is bool:
            parser.add_argument(name_or_flag, action="store_true", help=help_text)
        elif not name_or_flag.startswith("-"):
            parser.add_argument(name_or_flag, nargs=several, help=help_text).required = False
        else:
            if field.default is not None:
                help_text += " Required." if field.default is MISSING else f" Default: {field.default}."
            action = "extend" if several else "store"  # a list that is given twice is one list
            parser.add_argument(
                name_or_flag, action=action, nargs=several, metavar=_metavar(field.type), help=help_text
            )
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object on stdout")
    return parser


def _read_config(file: Path, kinds: dict[str, Any], hint: str) -> dict[str, Any]:
    """The options in a YAML file by name; null stands for the default.

    Raises:
        UserError: the file cannot be read or has no options, or one that must be a list is not.
    """
    from tamt.runtime.untrusted import read_yaml

    content = read_yaml(file)
    if not content:
        raise UserError(f"{file} has no options; write 'name: value' on each line, or leave --config out")
    options = {key: value for key, value in content.items() if value is not None}
    for key, value in options.items():
        if key not in kinds:
            raise UserError(f"{key} in {file} is not an option; {did_you_mean(key, kinds, hint)}")
        if takes_several(kinds[key]) and not isinstance(value, list):
            raise UserError(f"{key} in {file} is not a list; write {key}: [{value}]")
        if kinds[key] is bool and not isinstance(value, bool):
            raise UserError(f"{key} in {file} is {value!r}; write true or false")
    return options


def _written(kind: type[Options]) -> dict[str, str]:
    """How each option is written: with dashes; a first field that is a list, a path or `POSITIONAL` has no flag."""
    written = {field.name: "--" + field.name.replace("_", "-") for field in fields(kind)}
    first = fields(kind)[0]
    if kind.POSITIONAL or takes_several(first.type) or (first.type is Path and first.default is MISSING):
        written[first.name] = first.name
    return written


def _metavar(kind: Any) -> str | None:
    """How the help writes a value: its choices, N or X for a number, PATH; None for the name of the option."""
    if choices := choices_of(kind):
        return f"{{{','.join(choices)}}}"
    kind = without_none(kind)
    names = {int: "N", float: "X", Path: "PATH"}
    return ",".join(2 * [names[get_args(kind)[0]]]) if has_commas(kind) else names.get(kind)


def _usage(name: str, kind: type[Options]) -> str:
    """The usage line: the required options only."""
    words = [f"tamt {name}"]
    written = _written(kind)
    for field in fields(kind):
        if field.default is MISSING:
            flag = written[field.name]
            value = field.name.upper() + (" ..." if takes_several(field.type) else "")
            words.append(f"{flag} {value}" if flag.startswith("-") else value)
    return " ".join([*words, "[options]"])
