"""The databases that every other test gets."""

import asyncpg
import pytest
from tests.conftest import SCHEMA, Database, Server, fresh_database

from backfill.client import BackfillClient


async def names(server: Server) -> set[str]:
    """Return the names of all databases."""
    connection = await asyncpg.connect(server.dsn())
    try:
        return {row["datname"] for row in await connection.fetch("select datname from pg_database")}
    finally:
        await connection.close()


async def test_a_database_has_the_schema_and_is_ours_alone(db: Database, server: Server, template: str) -> None:
    connection = await db.connect()
    assert db.schema == SCHEMA
    assert await connection.fetchval("select count(*) from pg_namespace where nspname = $1", db.schema) == 1
    async with fresh_database(server, template) as other:
        assert other.name != db.name


async def test_an_empty_database_has_no_schema(empty_db: Database) -> None:
    connection = await empty_db.connect()
    assert await connection.fetchval("select count(*) from pg_namespace where nspname = $1", empty_db.schema) == 0


async def test_a_client_is_open_on_the_database(client: BackfillClient, db: Database) -> None:
    await client.enqueue("a_task", {})
    connection = await db.connect()
    schema = '"' + db.schema.replace('"', '""') + '"'
    assert await connection.fetchval(f"select count(*) from {schema}._private_jobs") == 1


async def test_connections_that_a_test_forgot_do_not_keep_its_database(server: Server, template: str) -> None:
    async with fresh_database(server, template) as database:
        leaked = await asyncpg.connect(database.dsn)
        transaction = leaked.transaction()
        await transaction.start()
        broken = await database.connect()
        with pytest.raises(asyncpg.PostgresError):
            await broken.execute("begin; select no_such_column")
        assert database.name in await names(server)
    assert database.name not in await names(server)
    leaked.terminate()


async def test_a_database_goes_when_the_test_fails(server: Server, template: str) -> None:
    seen: list[Database] = []

    async def fail() -> None:
        async with fresh_database(server, template) as database:
            seen.append(database)
            await database.connect()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert seen[0].name not in await names(server)
