"""A schema that Graphile Worker's own installer is in the middle of: it commits each of its revisions by itself."""

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from backfill.db import Connection
from backfill.errors import SchemaError
from backfill.schema import install
from backfill.schema.state import State, look

if TYPE_CHECKING:
    from tests.schema.conftest import Sql

HALF_WAY = """
delete from graphile_worker.migrations where id > 12;
update graphile_worker.migrations set ts = now() - interval '{ago}'
"""
THE_REST = "insert into graphile_worker.migrations (id, breaking) select id, id in (13, 14, 16, 19) from generate_series(13, 20) as id"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The revision that each look of an installer found; it looks again at once."""
    module = sys.modules["backfill.schema.install"]
    found: list[int | None] = []

    async def seen(connection: Connection, schema: str) -> State:
        state = await look(connection, schema)
        found.append(state.revision)
        return state

    monkeypatch.setattr(module, "look", seen)
    monkeypatch.setattr(module, "_BETWEEN_LOOKS", 0.0)
    return found


async def test_it_is_waited_for(sql: "Sql", other: "Sql", looks: list[int | None]) -> None:
    await sql.run(HALF_WAY.format(ago="0"))
    ours = asyncio.create_task(install(sql.connection, sql.schema))
    while len(looks) < 3 and not ours.done():
        await asyncio.sleep(0)
    await other.run(THE_REST)
    assert await ours == []


async def test_one_that_has_moved_long_ago_is_refused_at_once(sql: "Sql", looks: list[int | None]) -> None:
    await sql.run(HALF_WAY.format(ago="1 minute"))
    with pytest.raises(SchemaError, match="revision 12; backfill works with 18 to 20"):
        await install(sql.connection, sql.schema)
    assert looks == [12]


async def test_one_that_does_not_move_on_is_refused(
    sql: "Sql", looks: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["backfill.schema.install"], "_PATIENCE", 0.0)
    await sql.run(HALF_WAY.format(ago="0"))
    with pytest.raises(SchemaError, match="revision 12; backfill works with 18 to 20"):
        await install(sql.connection, sql.schema)
    assert looks == [12, 12]


async def test_an_empty_ledger_is_that_of_an_installer_that_has_just_begun(
    sql: "Sql", other: "Sql", looks: list[int | None]
) -> None:
    await sql.run("drop view graphile_worker.jobs; delete from graphile_worker.migrations")
    ours = asyncio.create_task(install(sql.connection, sql.schema))
    while len(looks) < 3 and not ours.done():
        await asyncio.sleep(0)
    assert not ours.done()
    ours.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ours
