"""Functions of `tamt` are short and take few parameters. Dataclasses of options have no `def`, and so no limit."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = 60
PARAMETERS = 8


def functions() -> dict[str, tuple[int, int]]:
    """The lines and the parameters of each function of `tamt`, without self, cls and the ctx of autograd."""
    found = {}
    for path in sorted((ROOT / "tamt").rglob("*.py")):
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
    over = [name for name, (lines, parameters) in functions().items() if lines > LINES or parameters > PARAMETERS]
    assert over == [], "split them or group parameters"
