"""What is public is documented, and its documentation names the parameters that there are."""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import walk_packages

import pytest

import tamt
import tamt_kernels as tk

MODULES = sorted(m.name for m in walk_packages(tamt.__path__, "tamt.") if not m.name.rpartition(".")[2].startswith("_"))


def documented(module: str) -> Iterator[tuple[str, object]]:
    """The public functions and classes that a module defines."""
    for name, value in vars(import_module(module)).items():
        own = not name.startswith("_") and getattr(value, "__module__", None) == module
        if own and (inspect.isfunction(value) or inspect.isclass(value)):
            yield f"{module}.{name}", value


def told(value: Callable) -> set[str]:
    """The parameters that the section Args of a docstring names."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(value) or "", re.DOTALL | re.MULTILINE)
    names = re.findall(r"^    ([\w, ]+):", section.group(1), re.MULTILINE) if section else []
    return {name for listed in names for name in listed.split(", ")}


@pytest.mark.parametrize("name", tk.__all__)
def test_a_public_name_of_the_kernels(name: str) -> None:
    value = getattr(tk, name)
    assert vars(value).get("__doc__") or inspect.getdoc(value), f"{name} has no docstring"
    assert not told(value) or told(value) <= set(inspect.signature(value).parameters)


@pytest.mark.parametrize("module", MODULES)
def test_a_public_module_of_tamt(module: str) -> None:
    assert import_module(module).__doc__
    for name, value in documented(module):
        assert inspect.getdoc(value), f"{name} has no docstring"
        # Python has no signature for an exception with no __init__ of its own, and it has no Args either.
        assert not told(value) or told(value) <= set(inspect.signature(value).parameters), name
