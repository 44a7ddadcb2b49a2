"""Winning tickets in BERT by task-agnostic mask training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tamt.version import __version__

if TYPE_CHECKING:
    from tamt.models.sparse import load_sparse
    from tamt.ticket import Ticket

__all__ = ["Ticket", "__version__", "load_sparse"]

_PLACES = {"Ticket": "tamt.ticket", "load_sparse": "tamt.models.sparse"}
"""The module of each public name. It is imported when the name is first used: torch takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
