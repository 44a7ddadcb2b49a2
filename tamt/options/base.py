"""The base of all options: checks, help texts, and functions that take options as an object or as keywords."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    overload,
)

from tamt.runtime.errors import check_choice, check_positive, check_seed
from tamt.runtime.quiet import quiet_transformers

P = ParamSpec("P")
Made = TypeVar("Made")
Taken = TypeVar("Taken", contravariant=True)


@dataclass(frozen=True)
class Options:
    """The options of a command: each field is an option; a field without a default is required.

    The docstring says what the command does and, under `Args:`, what each option is. Values are checked when the object
    is created, so options that exist are valid.
    """

    NOT_SAVED: ClassVar[set[str]] = {"resume", "check_every"}
    """Options that `settings` leaves out."""
    POSITIONAL: ClassVar[bool] = False
    """Whether the first option is written without a flag, though it is neither a list nor a required path."""
    MAY_BE_0: ClassVar[set[str]] = set()
    """Whole numbers that may be 0; all others except the seed must be 1 or more."""

    def __post_init__(self) -> None:
        for field in fields(self):
            name, kind, value = field.name, without_none(field.type), getattr(self, field.name)
            if value is None and kind is not field.type:
                continue
            if choices := choices_of(kind):
                check_choice(name, value, choices)
            elif name == "seed":
                check_seed("--seed", value)
            elif kind is int and name not in self.MAY_BE_0:
                check_positive(**{name: value})
        self.check()

    def check(self) -> None:
        """Further checks, before anything is loaded. Raises UserError if the options cannot work."""

    def settings(self) -> dict[str, Any]:
        """The options that a run folder saves in its `config.yaml`, in their order."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.NOT_SAVED}


class CommandFunction(Protocol[P, Taken]):
    """The function of a command. It takes its options as one object or as keywords."""

    @overload
    def __call__(self, options: Taken, /) -> dict: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict: ...


def command(kind: Callable[P, Made]) -> Callable[[Callable[[Made], dict]], CommandFunction[P, Made]]:
    """Decorator: a function that takes options of class `kind` takes keywords too, and has the help of the class."""

    def decorate(function: Callable[[Made], dict]) -> CommandFunction[P, Made]:
        function.__doc__ = kind.__doc__
        function.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> dict:
            is_one = len(args) == 1 and not kwargs and isinstance(args[0], cast("type", kind))
            options = args[0] if is_one else kind(*args, **kwargs)
            with quiet_transformers():
                return function(options)

        return cast("CommandFunction[P, Made]", call)

    return decorate


def help_of(kind: type) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and its text about each argument."""
    documentation = inspect.getdoc(kind) or ""
    texts: dict[str, str] = {}
    name = ""
    for line in documentation.partition("\nArgs:\n")[2].splitlines():
        if found := re.match(r"    (\w+): (.*)", line):
            name, texts[name] = found.group(1), found.group(2)
        elif name:
            texts[name] += f" {line.strip()}"
    return documentation.partition("\n")[0], texts


def without_none(kind: Any) -> Any:
    """The first type of a union that is not None; any other type unchanged."""
    if get_origin(kind) in {Union, UnionType}:
        return next(part for part in get_args(kind) if part is not NoneType)
    return kind


def choices_of(kind: Any) -> list[str]:
    """The choices of a type: the values of a Literal, or the names of an `Annotated[str, Names(REGISTRY)]`.

    The registry is read at each call, because it may have grown. Empty for any other type.
    """
    kind = without_none(kind)
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    registry: Iterable[str] = get_args(kind)[1] if get_origin(kind) is Annotated else ()
    return list(registry)
