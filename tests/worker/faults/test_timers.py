"""Jobs that become due by themselves start then, though nobody tells and the next poll is an hour away."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Ran

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout
from backfill.model import JobSpec, RetryPolicy, task
from backfill.sql import text
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.mark.parametrize("delays", [(0.05, 0.2, 0.3), (0.3, 0.2, 0.05)])
async def test_each_of_several_retries_starts(
    client: BackfillClient, run_worker: RunWorker, ran: Ran, delays: tuple[float, ...]
) -> None:
    @task("work")
    async def work(delay: float, ctx: WorkerContext) -> None:
        ran.note((delay, ctx.attempt))
        if ctx.attempt == 1:
            raise ConnectionTimeout("once")

    async with run_worker(work) as running:
        for delay in delays:
            await client.enqueue("work", delay, JobSpec(retry_policy=RetryPolicy(2, delay, delay, 1.0, 0.0)))
        await ran.total(6)
        assert running.worker.claimer.polls == 0
    assert ran.runs == {(delay, attempt): 1 for delay in delays for attempt in (1, 2)}


async def test_each_of_several_scheduled_jobs_starts(sql: Sql, run_worker: RunWorker, ran: Ran) -> None:
    @task("work")
    async def work(number: int) -> None:
        ran.note(number)

    for number in (3, 1, 2):
        await sql.add("work", number, run_at=timedelta(seconds=0.1 * number))
    async with run_worker(work) as running:
        await ran.total(3)
        assert running.worker.claimer.polls == 0
    assert ran.runs == {1: 1, 2: 1, 3: 1}


async def test_a_job_that_becomes_due_between_a_claim_and_the_question_for_the_next_time_starts(
    db: "Database", sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work(ctx: WorkerContext) -> None:
        ran.note(ctx.attempt)

    added, asked = asyncio.Event(), asyncio.Event()

    def rule(sent: Sent) -> Literal["before"] | None:
        if (sent.kind, sent.sql) != ("B", text("next_due", db.schema)) or not added.is_set() or asked.is_set():
            return None
        asked.set()
        return "before"

    async def delay_until_it_is_due(_: Session) -> None:
        await until(lambda: sql.count("run_at < now()"), "the job is due")

    async with (
        Proxy(db.dsn, rule, delay_until_it_is_due) as proxy,
        run_worker(work, database_url=proxy.dsn) as running,
    ):
        await sql.add_many(1, "work", run_at="now() + interval '0.2 s'")  # nobody is told
        added.set()
        running.worker.claimer.look_and_ask()
        await asked.wait()
        await ran.total(1)
        assert running.worker.claimer.polls == 0
