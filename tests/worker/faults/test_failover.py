"""The primary goes away under a worker whose URL names two servers, and the standby is promoted."""

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from tests.conftest import SCHEMA
from tests.support.cluster import Pair
from tests.support.places import locks
from tests.support.until import until
from tests.worker.faults.conftest import Ran
from tests.worker.faults.test_ended_backends import LANES, WAVE, wave

from backfill.client import BackfillClient
from backfill.db import connect
from backfill.errors import ConnectionTimeout, DatabaseError, ValidationFailed
from backfill.model import task
from backfill.worker import WorkerConfig, WorkerContext, WorkerRunner

READ_ONLY = ("alter system set default_transaction_read_only = on", "select pg_reload_conf()")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with Pair() as running:
        yield running


async def killed(pair: Pair) -> None:
    """The primary's machine is gone."""
    pair.primary.end(signal.SIGKILL)
    await pair.fail_over()


async def demoted(pair: Pair) -> None:
    """The primary stays, with all its connections, but takes no writes any more."""
    await pair.primary.execute(*READ_ONLY)
    await pair.fail_over()


@pytest.mark.parametrize("fail", [killed, demoted])
async def test_worker_and_client_follow_and_each_job_is_done_once(pair: Pair, ran: Ran, fail: Any) -> None:
    dsn = pair.dsn()

    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        await asyncio.sleep(0)
        ran.note((number, ctx.attempt))
        if number % 20 == 5:
            raise ValidationFailed("for good")
        if number % 10 == 3 and ctx.attempt == 1:
            raise ConnectionTimeout("once")

    config = WorkerConfig(
        database_url=dsn, schema=SCHEMA, queue_configs=LANES, poll_interval=timedelta(milliseconds=200)
    )
    async with (
        BackfillClient(dsn, SCHEMA) as client,
        await WorkerRunner.builder(config).define_job(work).build() as runner,
    ):
        stop = asyncio.Event()
        running = runner.spawn_background(stop)
        await client.enqueue_many(wave(0))
        await ran.total(20)
        worker = runner.worker
        assert worker is not None
        await worker.listener.wait_proven()
        await fail(pair)
        added = await until(partial(is_added, client), "the client has followed")
        assert len(added) == WAVE
        await until(partial(is_empty, client), "all is done", limit=60)
        await until(lambda: not worker.releaser.held, "all replies have come")
        await until(
            lambda: worker.listener.proven and worker.listener.connected_count > 1, "it listens there", limit=60
        )
        stop.set()
        await running
    numbers = range(2 * WAVE)
    assert ran.runs == {(n, 1): 1 for n in numbers} | {(n, 2): 1 for n in numbers if n % 10 == 3}
    connection = await asyncpg.connect(pair.standby.dsn())
    try:
        dead = await connection.fetch('select payload from "od""d name".backfill_dlq')
        assert sorted(int(row[0]) for row in dead) == [n for n in numbers if n % 20 == 5]
        assert await locks(connection, SCHEMA) == []
    finally:
        await connection.close()


async def is_added(client: BackfillClient) -> Any:
    """Try to add a wave; what was added, or None."""
    try:
        return await client.enqueue_many(wave(1))
    except DatabaseError:
        return None


async def is_empty(client: BackfillClient) -> bool:
    try:
        return await client.list_jobs(limit=1) == []
    except DatabaseError:
        return False


async def test_a_standby_is_passed_over_and_one_that_is_gone_too(pair: Pair) -> None:
    standby_first = pair.dsn().replace(str(pair.primary.folder), "X").replace(str(pair.standby.folder), "Y")
    dsn = standby_first.replace("X", str(pair.standby.folder)).replace("Y", str(pair.primary.folder))
    for _ in range(2):
        connection = await connect(dsn)
        assert not await connection.fetchval("select pg_is_in_recovery()")
        await connection.close()
    pair.primary.end()
    with pytest.raises(DatabaseError) as caught:
        await connect(dsn)
    said = str(caught.value)
    assert f"cannot connect to database 'postgres' at {pair.standby.folder}, {pair.primary.folder}" in said
    assert "a standby takes no writes" in said
    await pair.fail_over()
    connection = await connect(dsn)
    assert await connection.fetchval("show transaction_read_only") == "off"
    await connection.close()


async def test_the_url_may_ask_for_another_kind_of_server(pair: Pair) -> None:
    connection = await connect(pair.dsn() + "&target_session_attrs=standby")
    assert await connection.fetchval("select pg_is_in_recovery()")
    await connection.close()
