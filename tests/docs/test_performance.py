"""The page on performance: its tables are those of the recorded results, and the settings it recommends are those that were measured."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite import results
from benchmarks.suite.__main__ import PAGE, RECORDED
from benchmarks.suite.parts import PARTS
from benchmarks.suite.parts.xmin import SETTINGS
from benchmarks.suite.report import write
from tests.docs.blocks import blocks_of

from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database


def test_the_tables_are_those_of_the_recorded_results(tmp_path: Path) -> None:
    """`benchmarks/run --report` writes them; nobody else does."""
    page = Path(shutil.copy(PAGE, tmp_path))
    write(page, PARTS, results.read(RECORDED))
    assert page.read_text() == PAGE.read_text()


def test_every_part_that_has_a_table_has_a_place_on_the_page() -> None:
    places = set(re.findall(r"<!-- measured: ([\w-]+) -->", PAGE.read_text()))
    # A part's table of nothing is "" or fails for want of values; that of a part without one is always "".
    tabled = {part.name for part in PARTS if part.table.__module__ != "benchmarks.suite.part"}
    assert places == {"targets", "machine", *tabled}


def _settings(sql: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+) = ([\d.]+)", re.sub(r"--.*", "", sql)))


async def test_the_recommended_settings_can_be_made_and_are_those_that_were_measured(db: "Database") -> None:
    (block,) = [block for block in blocks_of("docs/performance.md") if block.language == "sql"]
    assert _settings(block.code) == _settings(SETTINGS)
    connection: Any = await db.connect()
    await connection.execute(with_schema(block.code, db.schema))
    options = await connection.fetchval("select reloptions from pg_class where relname = '_private_jobs'")
    assert dict(option.split("=") for option in options) == _settings(block.code)
