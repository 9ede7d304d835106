"""The database is away for longer than a lease, under a fleet: it does not sweep itself when it comes back."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.proxy import STARTUP, Proxy, Sent, Session
from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Ran

from backfill.model import task
from backfill.worker import QueueConfig

if TYPE_CHECKING:
    from tests.conftest import Database

LEASE = timedelta(seconds=5)
WORKERS, JOBS = 3, 6


@pytest.mark.timeout(240)
async def test_jobs_that_end_meanwhile_are_completed_and_the_others_handed_back(
    db: "Database", sql: Sql, run_worker: RunWorker, ran: Ran, caplog: pytest.LogCaptureFixture
) -> None:
    """Odd jobs end while the database is away. Even ones go on, and are cancelled: the lease may be over for all they know."""
    away, back = asyncio.Event(), asyncio.Event()

    @task("work")
    async def work(number: int) -> None:
        ran.note(number)
        if number % 2:
            await away.wait()
        elif ran.runs[number] == 1:
            await asyncio.Event().wait()

    def rule(sent: Sent) -> Literal["before"] | None:
        return "before" if away.is_set() and not back.is_set() and sent.kind == STARTUP else None

    async def wait(_session: Session) -> None:
        await back.wait()

    lanes = [QueueConfig.default_queue(2)]
    for number in range(JOBS):
        await sql.add("work", number)
    async with Proxy(db.dsn, rule, wait) as proxy, AsyncExitStack() as stack:
        fleet = [
            (await stack.enter_async_context(
                run_worker(work, lease=LEASE, queue_configs=lanes, database_url=proxy.dsn, ready=False)
            )).worker
            for _ in range(WORKERS)
        ]  # fmt: skip
        await ran.total(JOBS)
        fences = [worker.lease.fence for worker in fleet]
        away.set()
        proxy.cut()
        await until(lambda: all(fence.lapsed for fence in fences), "every lease has lapsed")
        await until(lambda: not any(worker.vitals.running() for worker in fleet), "all handlers were cancelled")
        assert ran.runs.total() == JOBS
        await sql.run("update graphile_worker.backfill_workers set heartbeat_at = heartbeat_at - interval '1 minute'")
        back.set()
        await until(lambda: is_empty(sql), "all jobs are done", limit=90)
        assert [worker.sweeper.sweeps for worker in fleet] == [0] * WORKERS
    assert ran.runs == {number: 1 if number % 2 else 2 for number in range(JOBS)}
    assert "is dead: it held" not in caplog.text
    assert await sql.rows("select * from graphile_worker.backfill_workers") == []


async def is_empty(sql: Sql) -> bool:
    return await sql.count() == 0
