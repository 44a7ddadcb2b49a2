"""The command line.

A command is a module of this package: ``configure(parser)`` names its options, ``run(options)`` runs it. Nothing here
nor in ``kernels`` and ``semi`` needs more than torch, Triton, transformers and numpy, so that they run on a bare
machine with a GPU; the other commands need what tamt needs.
"""

import argparse
import sys
from importlib import import_module
from typing import NoReturn

from tamt.runtime.errors import UserError

COMMANDS = {
    "kernels": "each operation of tamt_kernels, forward and backward, against its alternatives",
    "sparse": "products with the kept entries of a weight, and a whole model, against the best dense ones",
    "shrunk": "an encoder without the groups of a structured mask, against the dense one",
    "semi": "products with 2:4 weights by torch's semi-structured tensors, against dense ones, on a GPU",
    "step": "a whole step of a search, its time and its memory, against its alternatives",
    "search": "the time to a mask of IMP, TAMT-MLM and TAMT-KD, beside the paper's",
    "index": "write the page that lists the measured results",
    "compare": "tamt compare of 20 BERT-base masks, and one pair of them in three ways",
}


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose complaints are one sentence each."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, that of the process by default; return the exit code: 0, or 2 where the request is wrong."""
    parser = Parser(prog="python -m benchmarks", description="What the kernels cost, against the alternatives.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    try:
        for name, summary in COMMANDS.items():
            try:
                modules[name] = import_module(f"benchmarks.{name}")
            except RuntimeError as error:  # TAMT_KERNELS asks for what is not there
                raise UserError(str(error)) from error
            except ModuleNotFoundError as error:
                if name in (arguments or sys.argv[1:])[:1]:
                    raise UserError(f"{name} needs {error.name}, which is not installed; install tamt") from error
                continue
            modules[name].configure(commands.add_parser(name, help=summary, description=summary))
        options = parser.parse_args(arguments)
        modules[options.command].run(options)
    except UserError as error:
        print(f"python -m benchmarks: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
