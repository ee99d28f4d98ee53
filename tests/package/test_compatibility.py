"""docs/guide/compatibility.md: every row has one of the terms, and names existing tests."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LINES = (TESTS.parent / "docs" / "guide" / "compatibility.md").read_text().splitlines()
HEADS = {"| Feature | How | Shown by |", "| Behaviour | How | Shown by |", "| Complaint | Here | Shown by |"}
COMPLAINTS = LINES.index("| Complaint | Here | Shown by |")
ROWS = [
    (line.split("|"), i > COMPLAINTS) for i, line in enumerate(LINES) if re.match(r"\| ", line) and line not in HEADS
]


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(row: list[str], complaint: bool = False) -> str:
    """What is wrong with a row; empty if nothing. A complaint has free text instead of a term."""
    if len(row) != 5:
        return f"{len(row) - 2} cells instead of 3"
    _, feature, how, tests, _ = (cell.strip() for cell in row)
    if not how if complaint else how not in ("works", "reference route", "clear error"):
        return f"unknown word {how!r}"
    names = re.findall(r"`([^`]+)`", tests)
    if not names or tests != ", ".join(f"`{name}`" for name in names):
        return f"no list of tests: {tests!r}"
    for name in names:
        file, _, function = name.partition("::")
        if not (TESTS / file).is_file() or function not in functions(file):
            return f"there is no {name}"
    return ""


@pytest.mark.parametrize("row,complaint", ROWS, ids=[row[1].strip() for row, _ in ROWS])
def test_row(row, complaint):
    assert missing(row, complaint) == ""


def test_every_section_has_rows():
    tables = re.findall(r"^\|---\|---\|---\|\n\|", "\n".join(LINES), re.MULTILINE)
    assert len(tables) == len([line for line in LINES if line.startswith("## ")]) and len(ROWS) > 100


@pytest.mark.parametrize(
    "row,message",
    [
        ("| a | works | `numerics/test_amp.py::test_no_such` |", "there is no numerics/test_amp.py::test_no_such"),
        ("| a | works | `test_no_such.py::test_a` |", "there is no test_no_such.py::test_a"),
        ("| a | works | see the tests |", "no list of tests"),
        ("| a | works | |", "no list of tests"),
        ("| a | perhaps | `numerics/test_amp.py::test_the_largest_float16` |", "unknown word 'perhaps'"),
        ("| a | works |", "2 cells instead of 3"),
    ],
)
def test_wrong_rows_are_found(row, message):
    assert message in missing(row.split("|"))
