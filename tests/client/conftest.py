"""What tests of the client need: raw SQL beside it, as other workers and users would send it."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database

MARKER = "the end"
JOB = """
select jobs.id, tasks.identifier as task, queues.queue_name as queue, jobs.payload::text as payload, jobs.priority,
       jobs.run_at, jobs.attempts, jobs.max_attempts, jobs.last_error, jobs.created_at, jobs.key, jobs.locked_by,
       jobs.revision, jobs.flags::text as flags, jobs.run_at = jobs.created_at as at_once
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
"""


@dataclasses.dataclass(frozen=True)
class Raw:
    """A session that sends statements as they are, the schema written graphile_worker."""

    connection: asyncpg.Connection
    schema: str

    async def run(self, sql: str, *args: Any) -> None:
        await self.connection.execute(with_schema(sql, self.schema), *args)

    async def rows(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        return list(await self.connection.fetch(with_schema(sql, self.schema), *args))

    async def value(self, sql: str, *args: Any) -> Any:
        return await self.connection.fetchval(with_schema(sql, self.schema), *args)

    async def jobs(self) -> list[asyncpg.Record]:
        """All jobs, in the order of their ids."""
        return await self.rows(JOB + "order by jobs.id")

    async def job(self, job_id: int) -> asyncpg.Record:
        """One job that must be there."""
        (row,) = await self.rows(JOB + "where jobs.id = $1", job_id)
        return row

    async def claim(self, job_id: int, by: str = "worker/1") -> None:
        """Have the job running, claimed as workers do."""
        await self.run(
            "update graphile_worker._private_jobs set locked_at = now(), locked_by = $2, attempts = attempts + 1"
            " where id = $1",
            job_id,
            by,
        )

    async def exhaust(self, job_id: int, error: str | None = "it broke") -> None:
        """Have the job's attempts used up, as after its last failure."""
        await self.run(
            "update graphile_worker._private_jobs set attempts = max_attempts, last_error = $2, locked_at = null,"
            " locked_by = null where id = $1",
            job_id,
            error,
        )

    async def until_blocked(self, pid: int | None = None) -> None:
        """Return as soon as that session, or any of this database, waits for a lock."""
        sql = (
            "select exists (select from pg_stat_activity where datname = current_database()"
            " and ($1::int4 is null or pid = $1) and cardinality(pg_blocking_pids(pid)) > 0)"
        )
        async with asyncio.timeout(30):
            blocked = False
            while not blocked:
                blocked = await self.connection.fetchval(sql, pid)


Session = Callable[[], Awaitable[Raw]]


@pytest.fixture
def session(db: "Database") -> Session:
    """Opens a session."""

    async def opened() -> Raw:
        return Raw(await db.connect(), db.schema)

    return opened


@pytest.fixture
async def raw(session: Session) -> Raw:
    return await session()


@pytest.fixture
async def other(session: Session) -> Raw:
    """A second session."""
    return await session()


Heard = Callable[[], Awaitable[list[dict[str, Any]]]]


@pytest.fixture
async def heard(session: Session) -> AsyncIterator[Heard]:
    """A function that gives the notifications on jobs:insert since it was last called."""
    listener, sender = await session(), await session()
    payloads: list[str] = []
    ended = asyncio.Event()

    def hear(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        if payload == MARKER:
            ended.set()
        else:
            payloads.append(payload)

    await listener.connection.add_listener("jobs:insert", hear)

    async def take() -> list[dict[str, Any]]:
        ended.clear()
        await sender.value("select pg_notify('jobs:insert', $1)", MARKER)
        async with asyncio.timeout(30):
            await ended.wait()
        found = [json.loads(payload) for payload in payloads]
        payloads.clear()
        return found

    yield take
    await listener.connection.remove_listener("jobs:insert", hear)


@pytest.fixture
def queries() -> "Callable[[asyncpg.Connection], list[str]]":
    """A function that gives a list to which every statement of the connection is added when it is sent."""

    def watch(connection: asyncpg.Connection) -> list[str]:
        sent: list[str] = []
        connection.add_query_logger(lambda record: sent.append(record.query))
        return sent

    return watch
