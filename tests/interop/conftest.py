"""What the interop tests need: Node processes with the real graphile-worker, and a table in which both sides note their runs."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg
import pytest
from tests.support.graphile import NEWEST, NodeUnavailableError, Peer, installed

if TYPE_CHECKING:
    from tests.conftest import Database

RUNS = """
create table public.runs (
    id bigint generated always as identity primary key,
    side text not null,
    pid int not null,
    task text not null,
    job_id bigint not null,
    number int,
    attempt int not null,
    queue text,
    payload json not null,
    began timestamptz not null default clock_timestamp(),
    ended timestamptz
)
"""

StartNode = Callable[..., Awaitable[Peer]]


@pytest.fixture(scope="session")
def node_packages() -> None:
    """Have the npm packages; without them the tests fail in CI, and are skipped elsewhere."""
    try:
        installed()
    except NodeUnavailableError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the interop tests need graphile-worker from npm: {error}", pytrace=False)
        pytest.skip(f"no graphile-worker from npm on this machine: {error}")


@pytest.fixture
async def node(node_packages: None) -> AsyncIterator[StartNode]:
    """A function that starts a Node process on a database: `await node(db)`, or `package=REVISION_19` for an older one."""
    peers: list[Peer] = []

    async def start(database: "Database", *, schema: str | None = None, package: str = NEWEST) -> Peer:
        peers.append(await Peer.start(package, database.dsn, schema or database.schema))
        return peers[-1]

    yield start
    await asyncio.gather(*(peer.end() for peer in peers))


@pytest.fixture
async def runs(db: "Database") -> asyncpg.Connection:
    """A connection to `db`, which has the table that tasks note their runs in."""
    connection = await db.connect()
    await connection.execute(RUNS)
    return connection


@pytest.fixture
async def empty_runs(empty_db: "Database") -> asyncpg.Connection:
    """The same for `empty_db`."""
    connection = await empty_db.connect()
    await connection.execute(RUNS)
    return connection
