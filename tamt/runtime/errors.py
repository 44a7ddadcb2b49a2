"""The errors that a user can cause and mend."""

import difflib
from collections.abc import Iterable
from numbers import Integral


class UserError(Exception):
    """Something in the request or its input is wrong.

    The message is one sentence: what is wrong, where, what to do. The command line prints it and exits with code 2,
    without a traceback; from Python it is an ordinary exception.
    """


def did_you_mean(word: object, known: Iterable[str], otherwise: str) -> str:
    """`did you mean NAME`, with the known name that is nearest to `word`; `otherwise` if none is near."""
    names = {name.lstrip("-"): name for name in known}  # else all options would be near each other
    near = difflib.get_close_matches(str(word).lower().lstrip("-"), names, n=1, cutoff=0.5)
    return f"did you mean {names[near[0]]}" if near else otherwise


def check_seed(name: str, seed: int) -> None:
    """Check that NumPy's generators, too, can be seeded with a seed, called `name` in the message. Raises UserError if
    not."""
    if not isinstance(seed, Integral):
        raise UserError(f"{name} {seed!r} is not a whole number; give one from 0 to 4294967295")
    if not 0 <= seed < 2**32:
        raise UserError(f"{name} {seed} is negative or over 32 bits; give one from 0 to 4294967295")


def check_sparsity(name: str, sparsity: float) -> None:
    """Check that a sparsity, called `name` in the message, is between 0 and 1. Raises UserError if not."""
    if not 0 < sparsity < 1:
        raise UserError(f"{name} {sparsity:g} is not between 0 and 1; give 0.7 for 70 % zeros, say")


def check_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Check that the value of an option is one of its choices. Raises UserError, which lists them, if not."""
    choices = list(choices)
    if value not in choices:
        shown = " ".join(str(value).split())
        hint = did_you_mean(value, choices, "choose one of them")
        raise UserError(f"--{option.replace('_', '-')} {shown} is not one of {', '.join(choices)}; {hint}")


def check_positive(**options: float | None) -> None:
    """Check that options that count something, if given, are 1 or more. Raises UserError, naming the first other."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be 1 or more; raise it or leave it out")
