"""Values of options: from the words of a command line, or from YAML, to the types of the fields."""

from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin

from tamt.options.base import choices_of, without_none
from tamt.runtime.errors import UserError

WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text, so put it in quotes",
    Path: "a path, so put it in quotes",
    list[int]: "a list of whole numbers such as 1,2,3",
    list[float]: "a list of numbers such as 1e-4,3e-4",
}


class WrongValueError(ValueError):
    """A value is not of its option's type. The message is one line that ends in the type.

    What YAML cannot hold, such as a model, is named by its class: its text may be pages.
    """

    def __init__(self, value: object, kind: Any) -> None:
        plain = value is None or isinstance(value, bool | int | float | str | list | dict | date)
        written = " ".join(str(value).split()) if plain else f"a {type(value).__name__}"
        wanted = WANTED[kind] if plain else WANTED[kind].partition(",")[0]
        super().__init__(f"{written} is not {wanted}")


def convert(kind: Any, value: Any) -> Any:
    """A value as the type of its field. Types with choices are not checked here; the options check them.

    Args:
        kind: type of the field.
        value: a word, a list of words, or a value from YAML except null.

    Raises:
        WrongValueError: it is of another type.
    """
    kind = without_none(kind)
    if has_commas(kind):
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        try:
            return [convert(get_args(kind)[0], part) for part in parts]
        except WrongValueError as error:
            raise WrongValueError(value, kind) from error
    if get_origin(kind) is list:
        return [convert(get_args(kind)[0], part) for part in (value if isinstance(value, list) else [value])]
    if choices_of(kind):
        return as_choice(value)
    allowed = {int: (str, int), float: (str, int, float), bool: (bool,)}.get(kind, (str,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise WrongValueError(value, kind)
    try:
        return kind(value)
    except (ValueError, OverflowError) as error:
        raise WrongValueError(value, kind) from error


def as_choice(value: Any) -> Any:
    """A choice as it was written: YAML reads on and off as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def from_python(kind: Any, value: Any) -> Any:
    """A value that Python code gives, as the type of its field: paths may be text, a list of texts one of them.

    Raises:
        WrongValueError: it is of another type.
    """
    if value is None:
        return None
    if takes_several(kind) and isinstance(value, str | Path):
        value = [value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of NumPy or torch
        value = value.item()
    if isinstance(value, Path):
        value = str(value)
    elif isinstance(value, list | tuple | range):
        value = [str(part) if isinstance(part, Path) else part for part in value]
    return convert(kind, value)


def check_seeds(seeds: list[int] | None) -> None:
    """Raise UserError unless these values of `--seeds` are different seeds from 0 on, or None."""
    if seeds == []:
        raise UserError("--seeds is an empty list; fill it or leave it out")
    for seed in seeds or []:
        if not 0 <= seed < 2**32 or (seeds or []).count(seed) > 1:
            raise UserError(f"--seeds {seed} is negative, over 32 bits or given twice; give different seeds from 0 on")


def has_commas(kind: Any) -> bool:
    """Whether several values are one word with commas."""
    return without_none(kind) in (list[int], list[float])


def takes_several(kind: Any) -> bool:
    """Whether several values are several words."""
    return get_origin(without_none(kind)) is list and not has_commas(kind)
