"""An operation has the same file name in Python, Triton, C++ and CUDA, and docs/kernels.md says which files there are.

``python -m tests.kernels.test_files`` prints the table of the page.
"""

import re
from pathlib import Path

from tamt_kernels.backend.library import OPERATORS

ROOT = Path(__file__).parents[2]
HEADER = "| operators | Python | Triton | C++, CUDA |"


def python_file(operator: str) -> str:
    """The file of `tamt_kernels/ops` that defines an operator."""
    files = ROOT.glob("tamt_kernels/ops/*.py")
    (file,) = (file for file in files if re.search(rf'"{operator}\(', file.read_text(encoding="utf-8")))
    return str(file.relative_to(ROOT))


def triton_file(operator: str) -> list[str]:
    module = OPERATORS[operator].triton
    return [f"{module.replace('.', '/')}.py"] if module else []


def compiled_files(operator: str) -> list[str]:
    """The files with the launchers of an operator that `csrc/module.cpp` registers."""
    module = (ROOT / "csrc" / "module.cpp").read_text(encoding="utf-8")
    launchers = re.findall(rf'add\("{operator}", &(\w+)\)', module)
    texts = {file: file.read_text(encoding="utf-8") for file in ROOT.glob("csrc/c*/*.cpp")}
    # At the beginning of a line, after its type: the definition.
    files = [
        file
        for launcher in launchers
        for file in texts
        if re.search(rf"^\S.*\b{launcher}\(", texts[file], re.MULTILINE)
    ]
    return [str(file.relative_to(ROOT)) for file in files]


def rows() -> dict[str, dict[str, list[str]]]:
    """{file in Python: {operator: its files in Triton, C++ and CUDA}}."""
    by_file: dict[str, dict[str, list[str]]] = {}
    for operator in OPERATORS:
        by_file.setdefault(python_file(operator), {})[operator] = [*triton_file(operator), *compiled_files(operator)]
    return dict(sorted(by_file.items()))


def table() -> str:
    lines = [HEADER, "| --- | --- | --- | --- |"]
    for file, operators in rows().items():
        others = sorted({other for others in operators.values() for other in others})
        triton = [other for other in others if other.startswith("tamt_kernels")]
        compiled = [other for other in others if other.startswith("csrc")]
        cells = [operators, [file], triton, compiled]
        lines.append("| " + " | ".join(", ".join(f"`{name}`" for name in cell) or "–" for cell in cells) + " |")
    return "\n".join(lines)


def test_an_operation_has_one_file_name_everywhere() -> None:
    wrong = [
        (operator, other)
        for file, operators in rows().items()
        for operator, others in operators.items()
        for other in others
        if Path(other).stem != Path(file).stem
    ]
    assert wrong == []


def test_what_is_registered_has_its_file() -> None:
    """So that no row misses a file that the search above does not see."""
    module = (ROOT / "csrc" / "module.cpp").read_text(encoding="utf-8")
    registered = re.findall(r'add\("(\w+)", &\w+\)', module)
    assert {operator for operator in OPERATORS if compiled_files(operator)} == set(registered)


def test_the_page_has_the_table() -> None:
    """If not, print it by `python -m tests.kernels.test_files`."""
    assert table() in (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
