"""Each number of the three conformance lists is a test's, or docs/interop.md says why there is none.

A test carries its numbers in its docstring, one by one (`C-017`, `X-08`, `R-28`), or in its name (`test_c_017_…`).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = {"C": 60, "X": 13, "R": 73}
NUMBER = re.compile(r"(?<![A-Za-z])([CXR])[-_](\d{1,3})(?!\d)")


def numbers(text: str) -> set[str]:
    return {named(letter, int(number)) for letter, number in NUMBER.findall(text)}


def named(letter: str, number: int) -> str:
    return f"{letter}-{number:0{ {'C': 3, 'X': 2, 'R': 1}[letter] }}"


def all_tests() -> Iterator[str]:
    """Of each test of the repository, its docstring, and its name in capitals."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{ast.get_docstring(node) or ''} {node.name.upper()}"


def does_not_apply() -> set[str]:
    """The numbers in the first column of the table of docs/interop.md."""
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    section = page.partition("These do not apply:")[2].partition("Of these only a part applies:")[0]
    return {number for line in section.splitlines() if line.startswith("|") for number in numbers(line.split("|")[1])}


def test_every_number_is_a_test_s_or_is_explained() -> None:
    tested = {number for test in all_tests() for number in numbers(test)}
    every = {named(letter, number) for letter, last in LISTS.items() for number in range(1, last + 1)}
    excused = does_not_apply()
    assert excused
    assert sorted(every - tested - excused) == []
    assert sorted((tested | excused) - every) == [], "no list has these"
    assert sorted(tested & excused) == [], "these have a test: the table must not say that they do not apply"
