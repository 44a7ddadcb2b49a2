"""Winning tickets in BERT by task-agnostic mask training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tamt.version import __version__

if TYPE_CHECKING:
    from tamt.api import evaluate, export, find_ticket, finetune
    from tamt.callback import TicketCallback
    from tamt.models.sparse import load_sparse
    from tamt.results import EvaluateResult, FinetuneResult
    from tamt.runtime.errors import UserError
    from tamt.ticket import Ticket

__all__ = [
    "EvaluateResult",
    "FinetuneResult",
    "Ticket",
    "TicketCallback",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "find_ticket",
    "finetune",
    "load_sparse",
]

_PLACES = {
    "EvaluateResult": "tamt.results",
    "FinetuneResult": "tamt.results",
    "Ticket": "tamt.ticket",
    "TicketCallback": "tamt.callback",
    "UserError": "tamt.runtime.errors",
    "evaluate": "tamt.api",
    "export": "tamt.api",
    "find_ticket": "tamt.api",
    "finetune": "tamt.api",
    "load_sparse": "tamt.models.sparse",
}
"""The module of each public name. It is imported when the name is first used: torch takes seconds.

No module may have the name of a public function, as its import would take the function's place.
"""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
