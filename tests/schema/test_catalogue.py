"""Our installation and the reference catalogue of Graphile Worker, compared by the tool that made the reference."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backfill.schema
from backfill.schema import install

if TYPE_CHECKING:
    from tests.conftest import Database

SHARED = Path(__file__).parents[2].parent / "shared"
TOOL = SHARED / "tools" / "schema_catalog.py"
REFERENCE = SHARED / "reference" / "graphile-schema-catalog.json"
PACKAGED = Path(backfill.schema.__file__).with_name("catalog.json")


@pytest.mark.skipif(not TOOL.exists(), reason="the shared tool is not beside this checkout")
@pytest.mark.parametrize("schema", ["graphile_worker", "jobs", 'od"d name'])
async def test_the_shared_tool_finds_no_difference(empty_db: "Database", schema: str) -> None:
    connection = await empty_db.connect()
    await install(connection, schema)
    told = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(TOOL), empty_db.dsn, schema, "--without", "backfill_", "--check", str(PACKAGED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stdout.strip(), told.stderr) == (0, "identical", "")


@pytest.mark.skipif(not REFERENCE.exists(), reason="the shared reference is not beside this checkout")
def test_the_packaged_catalogue_is_the_reference() -> None:
    assert PACKAGED.read_bytes() == REFERENCE.read_bytes()
