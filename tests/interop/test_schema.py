"""X-01: each side's schema is the other's."""

from typing import TYPE_CHECKING

from tests.support.graphile import command_line

from backfill.schema import check, install, installed_revision
from backfill.schema.facts import live_facts, upstream_facts

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode


async def test_what_node_installs_is_complete_for_us(empty_db: "Database", node: "StartNode") -> None:
    """X-01."""
    peer = await node(empty_db)
    await peer.ask("migrate")
    connection = await empty_db.connect()
    before = await live_facts(connection, empty_db.schema)
    assert before == upstream_facts()
    assert await install(connection, empty_db.schema) == ["applied dead_letter_queue", "applied to_jsonb"]
    after = await live_facts(connection, empty_db.schema)
    assert {thing: fact for thing, fact in after.items() if "backfill_" not in thing} == before
    assert await check(connection, empty_db.schema) == []
    assert await installed_revision(connection, empty_db.schema) == 20


async def test_what_we_install_is_complete_for_node(db: "Database", node_packages: None) -> None:
    """X-01: `--schema-only` finds nothing to do."""
    connection = await db.connect()
    rows = "select * from pg_proc where pronamespace = $1::text::regnamespace order by oid"
    schema = '"od""d name"'
    before = await connection.fetch(rows, schema), await live_facts(connection, db.schema)
    code, printed = await command_line("--schema-only", "-c", db.dsn, "-s", db.schema)
    assert (code, printed.splitlines()[-1:]) == (0, ["Schema updated"])
    assert (await connection.fetch(rows, schema), await live_facts(connection, db.schema)) == before
