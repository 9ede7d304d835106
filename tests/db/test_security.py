from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import pytest

from backfill.db import check_row_security, quote_ident
from backfill.errors import SchemaError
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.fixture
async def superuser(db: "Database") -> asyncpg.Connection:
    return await db.connect()


@pytest.fixture
async def role(db: "Database", superuser: asyncpg.Connection) -> AsyncIterator[str]:
    """A role with every GRANT on the schema and nothing else."""
    name, quoted, schema = f'ro"le {db.name}', quote_ident(f'ro"le {db.name}'), quote_ident(db.schema)
    await superuser.execute(
        f"create role {quoted}; grant usage on schema {schema} to {quoted};"
        f"grant all on all tables in schema {schema} to {quoted};"
        f"grant all on all sequences in schema {schema} to {quoted}"
    )
    yield name
    await superuser.execute(f"drop owned by {quoted} cascade; drop role {quoted}")


@pytest.fixture
async def owner(db: "Database", superuser: asyncpg.Connection) -> AsyncIterator[str]:
    """The schema's tables belong to this role."""
    name = f"owner_{db.name}"
    schema = quote_ident(db.schema)
    await superuser.execute(f"create role {name}; alter schema {schema} owner to {name}")
    tables = ["_private_jobs", "_private_tasks", "_private_job_queues", "_private_known_crontabs", "migrations"]
    for table in (*tables, "backfill_dlq", "backfill_migrations"):
        await superuser.execute(f"alter table {schema}.{table} owner to {name}")
    yield name
    await superuser.execute(f"drop owned by {name} cascade; drop role {name}")


async def act_as(db: "Database", role: str) -> asyncpg.Connection:
    connection = await db.connect()
    await connection.execute(f"set session authorization {quote_ident(role)}")
    return connection


async def test_a_superuser_and_the_owner_may_work(db: "Database", superuser: asyncpg.Connection, owner: str) -> None:
    await check_row_security(superuser, db.schema)
    await check_row_security(await act_as(db, owner), db.schema)


async def test_a_role_with_every_grant_is_told_and_the_statement_told_mends_it(
    db: "Database", superuser: asyncpg.Connection, owner: str, role: str
) -> None:
    await superuser.execute(with_schema("select graphile_worker.add_job('t')", db.schema))
    connection = await act_as(db, role)
    count = with_schema("select count(*) from graphile_worker._private_jobs", db.schema)
    assert await connection.fetchval(count) == 0
    with pytest.raises(SchemaError) as caught:
        await check_row_security(connection, db.schema)
    said = str(caught.value)
    grant = f"GRANT {quote_ident(owner)} TO {quote_ident(role)};"
    assert said.endswith(grant)
    assert f"role {role!r} would see no jobs" in said
    await superuser.execute(grant)
    await check_row_security(connection, db.schema)
    connection = await act_as(db, role)
    assert await connection.fetchval(count) == 1


async def test_a_member_that_does_not_inherit_is_told_what_mends_that(
    db: "Database", superuser: asyncpg.Connection, owner: str, role: str
) -> None:
    await superuser.execute(f"alter role {quote_ident(role)} noinherit")
    await superuser.execute(f"grant {owner} to {quote_ident(role)}")
    connection = await act_as(db, role)
    with pytest.raises(SchemaError) as caught:
        await check_row_security(connection, db.schema)
    mend = str(caught.value).partition("as a superuser: ")[2]
    assert mend
    await superuser.execute(mend)
    await check_row_security(connection, db.schema)


async def test_a_role_that_bypasses_row_security_may_work(
    db: "Database", superuser: asyncpg.Connection, role: str
) -> None:
    await superuser.execute(f"alter role {quote_ident(role)} bypassrls")
    await check_row_security(await act_as(db, role), db.schema)


@pytest.mark.parametrize(
    "right", ["delete on graphile_worker.backfill_dlq", "all on sequence graphile_worker.backfill_dlq_id_seq"]
)
async def test_rights_on_the_dead_letter_queue_are_needed_too(
    db: "Database", superuser: asyncpg.Connection, owner: str, role: str, right: str
) -> None:
    quoted = quote_ident(role)
    await superuser.execute(f"alter role {quoted} bypassrls")
    await superuser.execute(with_schema(f"revoke {right} from {quoted}", db.schema))
    connection = await act_as(db, role)
    with pytest.raises(SchemaError, match="lacks rights on the dead letter queue") as caught:
        await check_row_security(connection, db.schema)
    await superuser.execute(str(caught.value).partition("as a superuser: ")[2])
    await check_row_security(connection, db.schema)


async def test_a_schema_that_is_not_there_is_told(empty_db: "Database") -> None:
    with pytest.raises(
        SchemaError, match=r"schema 'jobs' is not installed in this database.*run backfill schema install"
    ):
        await check_row_security(await empty_db.connect(), "jobs")


async def test_a_schema_without_a_dead_letter_queue_passes(db: "Database", superuser: asyncpg.Connection) -> None:
    await superuser.execute(with_schema("drop table graphile_worker.backfill_dlq", db.schema))
    await check_row_security(superuser, db.schema)
