"""Fixtures: one PostgreSQL server for the whole run, and a database of its own for each test.

The server is the one that `DATABASE_URL` names, else an embedded one that all xdist workers share. NOTIFY is heard in
the whole database, so no two tests share one. Nobody stays connected to the template: PostgreSQL copies no database
that is in use.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

if TYPE_CHECKING:
    from backfill.client import BackfillClient

SCHEMA = 'od"d name'
RUN = "BACKFILL_TEST_RUN"
SETTINGS = {"fsync": "off", "max_connections": "300", "max_wal_size": "256MB"}
MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 2 * 1024**3  # bytes; a container has 64 MB there by default
owns_run = pytest.StashKey[bool]()


class Server(Protocol):
    """What tests need of a server."""

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of a database on it."""
        ...


@dataclasses.dataclass(frozen=True)
class GivenServer:
    """The server of `DATABASE_URL`."""

    url: str

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of a database on it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/{quote(database, safe='')}" + (
            f"?{parts.query}" if parts.query else ""
        )


@dataclasses.dataclass(frozen=True)
class Database:
    """A fresh database. `schema` is the name of backfill's schema in it (not installed in `empty_db`)."""

    name: str
    dsn: str
    schema: str = SCHEMA
    connections: list[asyncpg.Connection] = dataclasses.field(default_factory=list)

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Open a connection with `asyncpg.connect`'s options; it is closed at the end of the test."""
        connection: asyncpg.Connection = await asyncpg.connect(self.dsn, **options)
        self.connections.append(connection)
        return connection


def pytest_configure(config: pytest.Config) -> None:
    """Name this run; xdist's workers inherit the name."""
    config.stash[owns_run] = RUN not in os.environ
    os.environ.setdefault(RUN, uuid.uuid4().hex[:12])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Drop the templates from a server that outlives this run."""
    if config.stash.get(owns_run, False):
        if given := os.environ.get("DATABASE_URL"):
            asyncio.run(drop_templates(GivenServer(given)))
        del os.environ[RUN]


async def execute(server: Server, *statements: str) -> None:
    """Execute statements one by one on a short-lived connection."""
    connection = await asyncpg.connect(server.dsn())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def template_name(kind: str = "") -> str:
    """Return the name of this run's template database of a kind."""
    return f"backfill_test_{os.environ[RUN]}_template{kind}"


async def install_ours(dsn: str) -> None:
    """Install the schema in a database."""
    from backfill.schema import install

    connection = await asyncpg.connect(dsn)
    try:
        await install(connection, SCHEMA)
    finally:
        await connection.close()


async def make_template(server: Server, name: str, fill: Callable[[str], Awaitable[None]]) -> None:
    """Make a template, unless another worker of this run has, under an advisory lock; `fill` installs the schema in it."""
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.fetchval("select pg_advisory_lock(hashtext($1))", name)
        complete = await connection.fetchval("select datistemplate from pg_database where datname = $1", name)
        if complete:
            return
        await connection.execute(f"drop database if exists {name} with (force)")
        await connection.execute(f"create database {name}")
        await fill(server.dsn(name))
        await connection.execute(f"alter database {name} with is_template true allow_connections false")
    finally:
        await connection.close()


async def drop_templates(server: Server) -> None:
    """Drop the templates that were made."""
    connection = await asyncpg.connect(server.dsn())
    try:
        for row in await connection.fetch(
            "select datname from pg_database where starts_with(datname, $1)", template_name()
        ):
            await connection.execute(f"alter database {row['datname']} with is_template false")
            await connection.execute(f"drop database {row['datname']} with (force)")
    finally:
        await connection.close()


async def copy_database(server: Server, name: str, template: str) -> None:
    """Make a database by copying the template's files, which PostgreSQL 14 always does."""
    connection = await asyncpg.connect(server.dsn())
    try:
        strategy = " strategy file_copy" if connection.get_server_version().major > 14 else ""
        await connection.execute(f"create database {name} template {template}{strategy}")
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def fresh_database(server: Server, template: str) -> AsyncIterator[Database]:
    """Make a database, and drop it whoever is still connected to it."""
    name = f"backfill_test_{os.environ[RUN]}_{uuid.uuid4().hex[:12]}"
    await copy_database(server, name, template)
    database = Database(name, server.dsn(name))
    try:
        yield database
    finally:
        for connection in database.connections:
            try:
                await connection.close(timeout=2)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()
        await execute(server, f"drop database if exists {name} with (force)")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The run's PostgreSQL server."""
    if given := os.environ.get("DATABASE_URL"):
        yield GivenServer(given)
        return
    from backfill.embedded import EmbeddedServer

    # In memory where there is room: making a database is hundreds of files, 10 times faster there than on a disk.
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED
    folder = (MEMORY if roomy else Path(tempfile.gettempdir())) / f"backfill-tests-{os.environ[RUN]}"
    with EmbeddedServer(folder, settings=SETTINGS, temporary=True) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of a database with the schema `SCHEMA`, to copy."""
    asyncio.run(make_template(server, template_name(), install_ours))
    return template_name()


@pytest.fixture
async def empty_db(server: Server) -> AsyncIterator[Database]:
    """A fresh database without backfill's schema."""
    async with fresh_database(server, "template1") as database:
        yield database


@pytest.fixture
async def db(server: Server, template: str) -> AsyncIterator[Database]:
    """A fresh database with backfill's schema, called `db.schema`."""
    async with fresh_database(server, template) as database:
        yield database


@pytest.fixture
async def client(db: Database) -> "AsyncIterator[BackfillClient]":
    """An open `BackfillClient` on `db`."""
    from backfill.client import BackfillClient

    async with BackfillClient(db.dsn, schema=db.schema, install=False) as opened:
        yield opened
