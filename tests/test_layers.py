"""The layout: imports point down from room to room, and no modules import each other."""

from tests.import_graph import circles, graph

ROOMS = (
    "benchmarks",
    "tamt.__main__",
    "tamt.cli",
    "tamt",
    "tamt.api",
    "tamt.results",
    "tamt.demo",
    "tamt.report",
    "tamt.sweep",
    "tamt.commands",
    "tamt.callback",
    "tamt.ticket",
    "tamt.search",
    "tamt.finetuning",
    "tamt.training",
    "tamt.objectives",
    "tamt.models",
    "tamt.masks",
    "tamt.next_step",
    "tamt.completion",
    "tamt.options",
    "tamt.recipes",
    "tamt.data",
    "tamt.methods",
    "tamt.terms",
    "tamt.runtime",
    "tamt.version",
    "tamt_kernels.autotune",
    "tamt_kernels",
    "tamt_kernels.optim",
    "tamt_kernels.nn",
    "tamt_kernels.ops",
    "tamt_kernels.masked_weight",
    "tamt_kernels.triton_kernels",
    "tamt_kernels.backend",
    "tamt_kernels.reference",
)
"""From the roof down. A package that is a room holds its own modules; its name alone is its `__init__`."""


def room(module: str) -> int:
    for name in (module, ".".join(module.split(".")[:2]), module.split(".")[0]):
        if name in ROOMS:
            return ROOMS.index(name)
    raise AssertionError(f"{module} is in no room: add it to ROOMS, as low as its imports allow")


def test_no_modules_import_each_other() -> None:
    assert circles(graph()) == []


def test_imports_point_down() -> None:
    # The layers' API, `import tamt_kernels as tk`, is for the packages above alone.
    up = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room(other) < room(module)
    ]
    assert up == []
