"""BackfillClient itself: opening, closing, and its methods' form."""

import asyncio
import inspect
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

import backfill
from backfill import BackfillClient
from backfill.db import quote_ident
from backfill.errors import BackfillError, ConfigurationError, DatabaseError, SchemaError

if TYPE_CHECKING:
    from tests.client.conftest import Raw
    from tests.conftest import Database


async def test_opening_installs_the_schema(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    async with BackfillClient(empty_db.dsn, schema='an "odd" one') as client:
        await client.enqueue("t", 1)
        assert client.schema == 'an "odd" one'
        assert await connection.fetchval('select count(*) from "an ""odd"" one"._private_jobs') == 1
    async with BackfillClient(empty_db.dsn) as client:
        assert client.schema == "graphile_worker"
        assert (await client.enqueue("t")).is_enqueued


async def test_its_sessions_get_another_name_and_those_of_a_given_pool_do_not(db: "Database") -> None:
    name = "show application_name"
    async with BackfillClient(db.dsn, schema=db.schema) as client:
        async with client.pool.acquire() as used:
            await client.name_sessions("mine")
            assert await used.fetchval(name) == "backfill"
        assert await client.pool.fetchval(name) == "mine"
        async with BackfillClient(client.pool, schema=db.schema) as other:
            await other.name_sessions("other")
            assert await other.pool.fetchval(name) == "mine"


async def test_its_sessions_compile_no_statements(db: "Database") -> None:
    """On PostgreSQL 15 a page of used-up jobs took 1 s of a core for that, at each look."""
    async with BackfillClient(db.dsn) as client:
        assert await client.pool.fetchval("show jit") == "off"


async def test_opening_without_installing_wants_it_there(empty_db: "Database") -> None:
    client = BackfillClient(empty_db.dsn, install=False)
    with pytest.raises(SchemaError, match="schema install"):
        await client.open()
    with pytest.raises(ConfigurationError, match="not open"):
        _ = client.pool
    connection = await empty_db.connect()
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    async with asyncio.timeout(30):
        left = 1
        while left:
            left = await connection.fetchval(others)


async def test_opening_tells_a_role_that_row_security_blinds(db: "Database") -> None:
    connection = await db.connect()
    role = f"blind {uuid.uuid4().hex[:12]}"
    schema = quote_ident(db.schema)
    try:
        await connection.execute(f"create role {quote_ident(role)} login password 'secret'")
        await connection.execute(f"grant usage on schema {schema} to {quote_ident(role)}")
        await connection.execute(f"grant all on all tables in schema {schema} to {quote_ident(role)}")
        parts = urlsplit(db.dsn)
        place = parts.netloc.rpartition("@")[2]
        url = f"{parts.scheme}://{quote(role)}:secret@{place}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        with pytest.raises(SchemaError, match="GRANT"):
            await BackfillClient(url, schema=db.schema, install=False).open()
    finally:
        await connection.execute(f"drop owned by {quote_ident(role)}")
        await connection.execute(f"drop role {quote_ident(role)}")


async def test_a_client_can_be_opened_and_closed_twice(db: "Database") -> None:
    client = BackfillClient(db.dsn, schema=db.schema, install=False)
    await client.close()
    assert await client.open() is client
    pool = client.pool
    await client.open()
    assert client.pool is pool
    await client.close()
    await client.close()
    async with client:
        assert (await client.enqueue("t")).is_enqueued


async def test_a_pool_that_was_given_stays_open(db: "Database") -> None:
    async with asyncpg.create_pool(db.dsn, min_size=1, max_size=2) as pool:
        async with BackfillClient(pool, schema=db.schema, install=False) as client:
            assert client.pool is pool
            await client.enqueue("t", 1)
        assert await pool.fetchval("select 1") == 1


async def test_a_client_that_is_not_open_says_so(db: "Database") -> None:
    client = BackfillClient(db.dsn, schema=db.schema)
    for use in (client.enqueue("t"), client.enqueue_many([]), client.get_job(1), client.dlq_stats()):
        with pytest.raises(ConfigurationError, match="async with"):
            await use


async def test_a_schema_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="63"):
        BackfillClient("postgresql://", schema="x" * 64)


async def test_a_server_that_is_not_there_is_a_database_error() -> None:
    with pytest.raises(DatabaseError, match=r"127\.0\.0\.1:1"):
        await BackfillClient("postgresql://someone@127.0.0.1:1/nowhere").open()


async def test_errors_of_the_driver_say_what_was_being_done(client: BackfillClient, raw: "Raw") -> None:
    await raw.run("drop table graphile_worker.backfill_dlq")
    with pytest.raises(SchemaError, match=r"cannot list dlq jobs: .*schema install"):
        await client.list_dlq_jobs()
    await raw.run("drop schema graphile_worker cascade")
    with pytest.raises(SchemaError, match="cannot get job: "):
        await client.get_job(1)
    with pytest.raises(SchemaError, match="cannot enqueue t: "):
        await client.enqueue("t")


def test_methods_show_their_own_parameters() -> None:
    assert str(inspect.signature(BackfillClient.get_job)).startswith("(self, /, job_id: int)")
    assert list(inspect.signature(BackfillClient.enqueue).parameters) == [
        "self",
        "task",
        "payload",
        "spec",
        "connection",
    ]
    for name, method in vars(BackfillClient).items():
        if not name.startswith("_") and inspect.iscoroutinefunction(method):
            assert method.__doc__, name
            assert "schema" not in inspect.signature(method).parameters, name


def test_every_public_name_is_there() -> None:
    for name in backfill.__all__:
        assert getattr(backfill, name) is not None
    assert issubclass(SchemaError, BackfillError)
