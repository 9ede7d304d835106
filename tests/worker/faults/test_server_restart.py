"""The database server restarts under a worker that runs 50 jobs while 500 wait."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Literal

import asyncpg
import pytest
from tests.conftest import SCHEMA
from tests.support.places import locks
from tests.support.until import until
from tests.worker.faults.conftest import Ran

from backfill.client import BackfillClient
from backfill.embedded import EmbeddedServer
from backfill.model import task
from backfill.worker import QueueConfig, WorkerConfig, WorkerContext, WorkerRunner

RUNNING, WAITING = 50, 500


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedServer]:
    """A server that this test may restart."""
    server = await asyncio.to_thread(EmbeddedServer().start)
    yield server
    await asyncio.to_thread(server.stop)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_each_job_is_done_once_and_the_worker_listens_again(
    own_server: EmbeddedServer, ran: Ran, mode: Literal["fast", "immediate"]
) -> None:
    dsn, may_go_on = own_server.dsn(), asyncio.Event()

    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        ran.note(number)
        await may_go_on.wait()
        await ctx.pool.execute("insert into done values ($1)", number)

    config = WorkerConfig(
        database_url=dsn,
        schema=SCHEMA,
        queue_configs=[QueueConfig.default_queue(RUNNING)],
        poll_interval=timedelta(hours=1),
    )
    async with (
        await WorkerRunner.builder(config).define_job(work).build() as runner,
        BackfillClient(dsn, SCHEMA) as client,
    ):
        await client.pool.execute("create table done (number int)")
        await client.enqueue_many([("work", number) for number in range(RUNNING + WAITING)])
        stop = asyncio.Event()
        running = runner.spawn_background(stop)
        await ran.total(RUNNING)
        worker = runner.worker
        assert worker is not None
        await worker.listener.wait_proven()
        await asyncio.to_thread(own_server.restart, mode)
        may_go_on.set()
        await ran.total(RUNNING + WAITING)
        await until(lambda: worker.listener.connected_count == 2, "the worker listens again")

        await until(lambda: not worker.releaser.held, "all jobs are released")
        notified = worker.claimer.notified
        await client.enqueue("work", -1)
        await ran.total(RUNNING + WAITING + 1)
        assert worker.claimer.notified == notified + 1
        assert worker.claimer.polls == 0
        stop.set()
        await running

    numbers = {*range(RUNNING + WAITING), -1}
    assert ran.runs == dict.fromkeys(numbers, 1)
    connection = await asyncpg.connect(dsn)
    try:
        done = [row["number"] for row in await connection.fetch("select number from done order by number")]
        assert done == sorted(numbers)
        assert await connection.fetchval('select count(*) from "od""d name"._private_jobs') == 0
        assert await locks(connection, SCHEMA) == []
    finally:
        await connection.close()
