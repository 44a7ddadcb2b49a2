"""The import graph of `tamt_kernels`, `tamt` and `benchmarks`: floors, circles and arrows that point up.

    python -m tests.import_graph

Every import counts, those inside functions and under TYPE_CHECKING too. `tests/test_layers.py` holds the result.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmarks", "tamt", "tamt_kernels")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The modules of the packages by name; a package is its `__init__`."""
    files = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(name: str, path: Path, known: Iterable[str]) -> set[str]:
    """The modules among `known` that the module `name` imports anywhere in its file."""
    known = set(known)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {_nearest(alias.name, known) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                module = f"{base}.{alias.name}"
                found.add(module if module in known else _nearest(base, known))
    return found - {"", name}


def _nearest(module: str, known: set[str]) -> str:
    return module if module in known else ""


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """For each module, the modules that it imports."""
    files = modules(root)
    return {name: imports(name, path, files) for name, path in files.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            start = stack.index(node)
            if len(stack) - start > 1:
                groups.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return groups


def floors(edges: dict[str, set[str]]) -> list[list[str]]:
    """The modules by height: the first floor imports nothing, each other one only floors below it."""
    heights: dict[str, int] = {}

    def height(node: str, above: tuple[str, ...] = ()) -> int:
        if node not in heights:
            below = [height(other, (*above, node)) for other in edges[node] if other not in above]
            heights[node] = 1 + max(below, default=-1)
        return heights[node]

    for node in edges:
        height(node)
    return [sorted(n for n, h in heights.items() if h == floor) for floor in range(max(heights.values()) + 1)]


if __name__ == "__main__":
    everything = graph()
    for floor, names in reversed(list(enumerate(floors(everything)))):
        print(f"floor {floor}: {', '.join(names)}\n")
    found = circles(everything)
    print(f"{len(found)} circles", *(" <-> ".join(group) for group in found), sep="\n  ")
    sys.exit(bool(found))
