"""The table of faults in the guide names tests that there are, and every file of the fault suite."""

import re

from tests.docs.blocks import ROOT

NAMES = re.compile(r"`([\w/]+\.py)`")


def test_the_table_of_faults() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and ".py`" in line]
    named = {name for row in rows for name in NAMES.findall(row) if not name.startswith("benchmarks/")}
    assert len(rows) > 25
    assert all(NAMES.search(row.rsplit(" | ", 1)[-1]) for row in rows)
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()
    suite = {f"faults/{file.name}" for file in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert suite - named == {"faults/test_ledger.py"}
