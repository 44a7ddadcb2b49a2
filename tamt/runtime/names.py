"""Short names, also for files, that stay apart."""

import hashlib
import re
from collections.abc import Mapping


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Names of things, told apart also where the case of letters does not count.

    Args:
        names: a short name for each thing, by what it is in full.

    Returns:
        The same names, but where several things would share one, each with the start of the sha256 of what it is.
    """
    same = [name.casefold() for name in names.values()]
    return {
        full: name if same.count(name.casefold()) == 1 else f"{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
        for full, name in names.items()
    }


def slug(text: str) -> str:
    """A text as part of a file name: what is no ASCII letter, digit, dot, plus or minus is a minus."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip(".-") or "model"
