"""Functions are short and take few parameters. Dataclasses of options have no `def`, and so no limit."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = 60
PARAMETERS = 8
PACKAGES = ("tamt", "tamt_kernels", "benchmarks")
KERNELS = "tamt_kernels/triton_kernels"
SCHEMAS = {
    "tamt_kernels/optim.py:__init__",  # as torch's AdamW has them
    "tamt_kernels/ops/sparse_embedding.py:_fake",
    *(f"tamt_kernels/reference.py:{name}" for name in ("mask_weights", "adamw", "mask_adamw", "pattern_adamw")),
    "tamt_kernels/reference.py:sparse_embedding",
}
"""Definitions and fakes of operators: their parameters are those of the operator's schema, which are tensors."""


def functions() -> dict[str, tuple[int, int]]:
    """The lines and the parameters of each function, without self, cls and the ctx of autograd."""
    found = {}
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    for path in paths:
        if path.is_relative_to(ROOT / KERNELS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                names = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                parameters = len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))
                assert node.end_lineno is not None
                key = f"{path.relative_to(ROOT)}:{node.name}"
                lines, most = found.get(key, (0, 0))
                found[key] = max(lines, node.end_lineno + 1 - node.lineno), max(most, parameters)
    return found


def test_functions_are_short_and_take_few_parameters() -> None:
    sizes = functions()
    long = [name for name, (lines, _) in sizes.items() if lines > LINES]
    many = {name for name, (_, parameters) in sizes.items() if parameters > PARAMETERS}
    assert long == [], "split them"
    assert many == SCHEMAS, "group parameters"
