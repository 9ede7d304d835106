"""X-01, X-02, X-10, C-002: schemas that Node installed, and ours for Node."""

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.support.graphile import REVISION_18, REVISION_19, command_line

from backfill.client import BackfillClient
from backfill.db import quote_ident
from backfill.schema import check, install, installed_revision, script
from backfill.schema.ddl import MIGRATIONS
from backfill.schema.facts import live_facts, upstream_facts

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode

OURS = [f"applied {step.name}" for step in MIGRATIONS]
UPGRADED = [f"upgraded Graphile Worker's objects to revision {number}" for number in (19, 20)]
FUNCTIONS = "select oid, xmin, * from pg_proc where pronamespace = $1::text::regnamespace order by oid"


async def functions(connection: asyncpg.Connection, schema: str) -> list[Any]:
    """All about the functions, bodies included, and whether they were touched."""
    return [tuple(row) for row in await connection.fetch(FUNCTIONS, quote_ident(schema))]


async def upstream(connection: asyncpg.Connection, schema: str) -> dict[str, str]:
    return {thing: fact for thing, fact in (await live_facts(connection, schema)).items() if "backfill_" not in thing}


async def ledger(connection: asyncpg.Connection, schema: str) -> list[tuple[int, bool]]:
    rows = await connection.fetch(f"select id, breaking from {quote_ident(schema)}.migrations order by id")
    return [(row["id"], row["breaking"]) for row in rows]


@pytest.fixture
async def announced(empty_db: "Database") -> "list[dict[str, Any]]":
    """What was said on worker:migrate since the beginning of the test."""
    listener = await empty_db.connect()
    heard: list[dict[str, Any]] = []
    await listener.add_listener("worker:migrate", lambda *said: heard.append(json.loads(said[-1])))
    return heard


@pytest.mark.parametrize("schema", ['od"d name', "graphile_worker", "Mixed.Case's"])
async def test_what_node_installs_is_complete_for_us(empty_db: "Database", node: "StartNode", schema: str) -> None:
    """X-01."""
    await (await node(empty_db, schema=schema)).ask("migrate")
    connection = await empty_db.connect()
    before = await functions(connection, schema)
    assert await upstream(connection, schema) == upstream_facts()
    assert await install(connection, schema) == OURS
    assert await upstream(connection, schema) == upstream_facts()
    assert [row for row in await functions(connection, schema) if "backfill" not in str(row)] == before
    assert await check(connection, schema) == []
    assert await installed_revision(connection, schema) == 20


async def test_what_we_install_is_complete_for_node(db: "Database", node_packages: None) -> None:
    """X-01: `--schema-only` finds nothing to do."""
    connection = await db.connect()
    before = await functions(connection, db.schema), await live_facts(connection, db.schema)
    code, printed = await command_line("--schema-only", "-c", db.dsn, "-s", db.schema)
    assert (code, printed.splitlines()[-1:]) == (0, ["Schema updated"])
    assert (await functions(connection, db.schema), await live_facts(connection, db.schema)) == before


@pytest.mark.parametrize(("package", "revision"), [(REVISION_18, 18), (REVISION_19, 19)])
async def test_nodes_older_schema_is_upgraded_and_told(
    empty_db: "Database", node: "StartNode", announced: "list[dict[str, Any]]", package: str, revision: int
) -> None:
    """X-02, X-10."""
    await (await node(empty_db, package=package)).ask("migrate")
    connection = await empty_db.connect()
    assert await installed_revision(connection, empty_db.schema) == revision
    missing = range(revision + 1, 21)
    assert await check(connection, empty_db.schema) == [
        *(f"revision {number} of Graphile Worker was not applied: run backfill schema install" for number in missing),
        *[line for line in await check(connection, empty_db.schema) if not line.startswith("revision")],
    ]
    announced.clear()
    assert await install(connection, empty_db.schema) == [*UPGRADED[revision - 18 :], *OURS]
    assert await upstream(connection, empty_db.schema) == upstream_facts()
    assert (await ledger(connection, empty_db.schema))[revision:] == [(19, True), (20, False)][revision - 18 :]
    assert await check(connection, empty_db.schema) == []
    assert await install(connection, empty_db.schema) == []
    assert announced == [{"migrationNumber": number, "breaking": number == 19} for number in missing]
    before = await functions(connection, empty_db.schema)
    await (await node(empty_db)).ask("migrate")
    assert await functions(connection, empty_db.schema) == before


@pytest.mark.usefixtures("empty_runs")
async def test_workers_of_node_live_through_revision_20(empty_db: "Database", node: "StartNode") -> None:
    """X-10."""
    peer = await node(empty_db, package=REVISION_19)
    await peer.ask("run", {"tasks": ["task"], "events": ["job:success"]})
    await install(await empty_db.connect(), empty_db.schema)
    async with BackfillClient(empty_db.dsn, schema=empty_db.schema) as client:
        await client.enqueue("task", {"number": 1})
    assert (await peer.event("job:success"))["number"] == 1
    assert [event for event in peer.events if event["event"] == "ended"] == []


async def test_workers_of_node_stop_at_revision_19_if_they_do_not_know_it(
    empty_db: "Database", node: "StartNode"
) -> None:
    """X-10: it is breaking."""
    peer = await node(empty_db, package=REVISION_18)
    await peer.ask("run", {"tasks": ["task"]})
    await install(await empty_db.connect(), empty_db.schema)
    assert (await peer.event("ended"))["exitCode"] == 57


async def test_a_role_that_cannot_upgrade_works_with_what_is_there(
    empty_db: "Database", node: "StartNode", caplog: pytest.LogCaptureFixture
) -> None:
    await (await node(empty_db, package=REVISION_19)).ask("migrate")
    connection = await empty_db.connect()
    await connection.execute(script(empty_db.schema))
    assert await installed_revision(connection, empty_db.schema) == 19
    role = f"r{empty_db.name[-12:]}"
    schema = quote_ident(empty_db.schema)
    await connection.execute(f"create role {role} bypassrls")
    try:
        await connection.execute(f"grant usage on schema {schema} to {role}")
        await connection.execute(f"grant all on all tables in schema {schema} to {role}")
        await connection.execute(f"set role {role}")
        with caplog.at_level(logging.WARNING, "backfill"):
            assert await install(connection, empty_db.schema) == []
        assert "stays at Graphile Worker revision 19" in caplog.text
        assert await installed_revision(connection, empty_db.schema) == 19
    finally:
        await connection.execute("reset role")
        await connection.execute(f"drop owned by {role}")
        await connection.execute(f"drop role {role}")


@pytest.mark.parametrize("package", [None, REVISION_18])
async def test_twenty_installers_of_both_kinds_all_succeed(
    empty_db: "Database", node: "StartNode", package: str | None
) -> None:
    """C-002: on nothing, and on a schema that has to be upgraded."""
    if package is not None:
        await (await node(empty_db, package=package)).ask("migrate")
    peers = [await node(empty_db) for _ in range(2)]
    connections = [await empty_db.connect() for _ in range(10)]
    done = await asyncio.gather(
        *(peer.ask("migrate") for peer in peers for _ in range(5)),
        *(install(connection, empty_db.schema) for connection in connections),
    )
    assert [outcome for outcome in done if outcome and OURS[0] in outcome] != []
    breaking = {1, 3, 11, 13, 14, 16, 19}
    assert await ledger(connections[0], empty_db.schema) == [(number, number in breaking) for number in range(1, 21)]
    assert await upstream(connections[0], empty_db.schema) == upstream_facts()
    assert await check(connections[0], empty_db.schema) == []


async def test_a_database_that_is_too_new_stops_node_and_us(db: "Database", node: "StartNode") -> None:
    """C-004, X-02."""
    connection = await db.connect()
    await connection.execute(f"insert into {quote_ident(db.schema)}.migrations (id, breaking) values (21, true)")
    with pytest.raises(Exception, match="breaking revision 21"):
        await BackfillClient(db.dsn, schema=db.schema, install=False).open()
    code, printed = await command_line("--schema-only", "-c", db.dsn, "-s", db.schema)
    assert code == 1
    assert "revision 21 which includes breaking migration 21" in printed
