from typing import TYPE_CHECKING

from tests.cli.conftest import CommandLine

from backfill.schema import check

if TYPE_CHECKING:
    from tests.conftest import Database

SCHEMA = 'odd "name'


async def test_install_dry_run_then_really_then_again(bare_cli: CommandLine, empty_db: "Database") -> None:
    where = ("--database-url", empty_db.dsn, "--schema", SCHEMA)
    connection = await empty_db.connect()
    done = await bare_cli("schema", "install", "--dry-run", *where)
    assert f"would have created schema {SCHEMA}" in done.out
    assert await check(connection, SCHEMA) == [
        f"schema {SCHEMA!r} is not installed in this database: run backfill schema install"
    ]
    done = await bare_cli("schema", "install", "--json", *where)
    assert done.document["dry_run"] is False
    assert f"created schema {SCHEMA}" in done.document["done"]
    assert await check(connection, SCHEMA) == []
    done = await bare_cli("schema", "install", *where)
    assert done.out == f"schema {SCHEMA} is complete: nothing to do\n"


async def test_the_owner_gets_what_is_made(bare_cli: CommandLine, empty_db: "Database") -> None:
    connection = await empty_db.connect()
    role = f"owner_of_{empty_db.name}"
    await connection.execute(f"create role {role}")
    try:
        await bare_cli("schema", "install", "--database-url", empty_db.dsn, "--owner", role)
        owners = await connection.fetch(
            "select distinct tableowner from pg_tables where schemaname = 'graphile_worker'"
        )
        assert [row["tableowner"] for row in owners] == [role]
    finally:
        await connection.execute(f"drop schema if exists graphile_worker cascade; drop role {role}")


async def test_check(cli: CommandLine, db: "Database") -> None:
    done = await cli("schema", "check")
    assert done.out == f"schema {db.schema} is as it should be\n"
    assert (await cli("schema", "check", "--json")).document == {"schema": db.schema, "problems": []}
    connection = await db.connect()
    name = db.schema.replace('"', '""')
    await connection.execute(f'alter table "{name}".backfill_dlq drop column notes')
    done = await cli("schema", "check", code=1)
    assert "column backfill_dlq.notes is missing" in done.out
    done = await cli("schema", "check", "--json", code=1)
    assert "column backfill_dlq.notes is missing" in done.document["problems"]


async def test_what_print_prints_installs(bare_cli: CommandLine, empty_db: "Database") -> None:
    done = await bare_cli("schema", "print", "--schema", SCHEMA)
    connection = await empty_db.connect()
    await connection.execute(done.out)
    assert await check(connection, SCHEMA) == []
    as_json = await bare_cli("schema", "print", "--schema", SCHEMA, "--json")
    assert as_json.document == {"schema": SCHEMA, "sql": done.out}
