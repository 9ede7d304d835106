"""What the interop tests need: Node processes with the real graphile-worker, and a table in which both sides note their runs."""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.interop.tasks import held
from tests.support.graphile import NEWEST, NodeUnavailableError, Peer, installed
from tests.support.until import until

from backfill import QueueConfig, Task, WorkerConfig, WorkerRunner

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
async def peer(db: "Database", node: StartNode) -> Peer:
    """A Node process on `db`."""
    return await node(db)


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


@dataclasses.dataclass(frozen=True)
class Ours:
    """Our side: workers in this process, with polls so far apart that only notifications wake them."""

    database: "Database"

    @contextlib.asynccontextmanager
    async def running(self, *tasks: Task[Any], crontab: str = "", **settings: Any) -> AsyncIterator[WorkerRunner]:
        """A worker in the background that listens and has looked at what there is."""
        async with await self._build(tasks, settings, crontab) as runner:
            stop = asyncio.Event()
            background = runner.spawn_background(stop)
            try:
                await until(lambda: runner.worker is not None and runner.worker.claimer.claims, "it has looked")
                assert runner.worker is not None
                async with asyncio.timeout(60):
                    await runner.worker.listener.wait_proven()
                yield runner
            finally:
                for go in held.values():
                    go.set()
                held.clear()
                stop.set()
                await background

    async def drain(self, *tasks: Task[Any], **settings: Any) -> int:
        """Run what is due; how many runs there were."""
        async with await self._build(tasks, settings) as runner:
            return await runner.process_available_jobs()

    async def _build(self, tasks: tuple[Task[Any], ...], settings: dict[str, Any], crontab: str = "") -> WorkerRunner:
        config = WorkerConfig(
            **{
                "database_url": self.database.dsn,
                "schema": self.database.schema,
                "poll_interval": timedelta(hours=1),
                "shutdown_timeout": timedelta(seconds=20),
                "queue_configs": [QueueConfig.default_queue(4)],
                **settings,
            }
        )
        builder = WorkerRunner.builder(config)
        for defined in tasks:
            builder.define_job(defined)
        if crontab:
            builder.add_crontab(crontab)
        return await builder.build()


@pytest.fixture
def ours(db: "Database") -> Ours:
    return Ours(db)
