"""Statements that were carried out although their reply was lost: nothing runs twice, nothing stays locked, nothing waits.

The workers poll once an hour, so whatever is not started by a notification, a release or a timer fails its test.
"""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Fault, Ran, is_empty

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout
from backfill.model import JobSpec, RetryPolicy, task
from backfill.sql import text
from backfill.worker import QueueConfig, WorkerContext

if TYPE_CHECKING:
    from tests.conftest import Database

SOON = RetryPolicy(3, 0.05, 0.05, 1.0, 0.0)
LANES = {
    "own lane": [QueueConfig.named_queue("serial"), QueueConfig.default_queue(4)],
    "common lane": [QueueConfig.default_queue(4)],
}


@pytest.fixture(params=LANES)
def lanes(request: pytest.FixtureRequest) -> list[QueueConfig]:
    return LANES[request.param]


async def test_the_next_job_of_a_queue_starts_although_the_release_s_reply_was_lost(
    client: BackfillClient, sql: Sql, fault: Fault, run_worker: RunWorker, lanes: list[QueueConfig]
) -> None:
    ran = Ran()

    @task("work")
    async def work(number: int) -> None:
        ran.note(number)

    async with run_worker(work, database_url=fault.dsn, queue_configs=lanes):
        fault.strike("release_completed")
        await client.enqueue_many([("work", number, JobSpec(queue="serial")) for number in (1, 2)])
        await ran.total(2)
        await until(lambda: is_empty(sql), "both are released")
    assert (ran.runs, fault.struck) == ({1: 1, 2: 1}, 1)


async def test_a_retry_starts_at_its_time_although_the_release_s_reply_was_lost(
    client: BackfillClient, sql: Sql, fault: Fault, run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work(ctx: WorkerContext) -> None:
        ran.note(ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionTimeout("once")

    async with run_worker(work, database_url=fault.dsn):
        fault.strike("release_failed")
        await client.enqueue("work", spec=JobSpec(retry_policy=SOON))
        await ran.total(2)
        await until(lambda: is_empty(sql), "it is released")
    assert (ran.runs, fault.struck) == ({1: 1, 2: 1}, 1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_scheduled_job_starts_at_its_time_although_the_question_for_it_got_no_answer(
    sql: Sql, fault: Fault, run_worker: RunWorker, ran: Ran, when: Literal["before", "after"]
) -> None:
    @task("work")
    async def work(ctx: WorkerContext) -> None:
        ran.note(ctx.attempt)

    await sql.add("work", run_at=timedelta(seconds=0.5))
    fault.strike("next_due", when)
    async with run_worker(work, database_url=fault.dsn, ready=False):
        await ran.total(1)
        await until(lambda: is_empty(sql), "it is released")
    assert fault.struck == 1


@pytest.mark.parametrize("queue", [None, "serial"])
async def test_jobs_of_a_claim_whose_reply_was_lost_are_handed_back_and_run_once(
    client: BackfillClient, fault: Fault, run_worker: RunWorker, lanes: list[QueueConfig], queue: str | None
) -> None:
    ran = Ran()

    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        ran.note((number, ctx.attempt))

    async with run_worker(work, database_url=fault.dsn, queue_configs=lanes) as running:
        of_queue = "claim_queue_head" if len(lanes) > 1 else "claim_jobs"
        statement = of_queue if queue else "claim_free_jobs"
        fault.strike(statement, only_if=lambda: client.list_jobs(state="running"))
        await client.enqueue_many([("work", number, JobSpec(queue=queue)) for number in (1, 2, 3)])
        await ran.total(3)
    assert ran.runs == {(1, 1): 1, (2, 1): 1, (3, 1): 1}
    assert running.worker.releaser.stale == 0
    assert not await client.list_jobs()
    assert fault.struck == 1


async def test_a_job_that_was_superseded_while_its_claim_was_in_doubt_is_not_run(
    client: BackfillClient, db: "Database", sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work(payload: str) -> None:
        ran.note(payload)

    def rule(sent: Sent) -> Literal["after"] | None:
        is_claim = (sent.kind, sent.sql) == ("S", text("claim_free_jobs", db.schema))
        return "after" if is_claim and asked.is_set() and not claimed.is_set() else None

    async def supersede(session: Session) -> None:
        if await sql.locks() == (0, 0):
            return  # a claim that came before the job
        claimed.set()
        await client.enqueue("work", "new", JobSpec(job_key="key"))
        session.cut()

    asked, claimed = asyncio.Event(), asyncio.Event()
    async with Proxy(db.dsn, rule, supersede) as proxy, run_worker(work, database_url=proxy.dsn):
        asked.set()
        await client.enqueue("work", "old", JobSpec(job_key="key"))
        await claimed.wait()

        async def left() -> bool:
            """The new job is done; of the old one nothing is known but its row, so it is kept, used up."""
            rows = await sql.rows(
                "select locked_by, attempts = max_attempts as used_up from graphile_worker._private_jobs"
            )
            return [tuple(row) for row in rows] == [(None, True)]

        await until(left, "the new job is done, the old one is used up")
    assert ran.runs == {"new": 1}


async def test_a_claim_that_is_still_at_work_when_its_connection_is_lost_is_found(
    sql: Sql, other: Sql, fault: Fault, run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work(ctx: WorkerContext) -> None:
        ran.note(ctx.attempt)

    async def waits() -> int:
        return int(
            await other.value(
                "select count(*) from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'",
                f"{running.worker.id}:claim",
            )
        )

    async with run_worker(work, database_url=fault.dsn) as running:
        async with sql.connection.transaction():
            await sql.run("lock table graphile_worker._private_jobs in access exclusive mode")
            running.worker.claimer.look()
            await until(waits, "the claim waits for the table")
            await sql.add("work")
            (cut,) = [session for session in fault.proxy.sessions if session.role == "claim"]
            fault.proxy.cut("claim")
            await until(lambda: cut not in fault.proxy.sessions, "its connection is gone")
        await ran.total(1)
        await until(lambda: is_empty(sql), "it is released")
    assert ran.runs == {1: 1}


async def test_a_claim_that_arrives_after_its_connection_was_lost_takes_nothing(
    db: "Database", sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    late, go_on = asyncio.Event(), asyncio.Event()

    @task("work")
    async def work(ctx: WorkerContext) -> None:
        ran.note(ctx.job.id)

    def rule(sent: Sent) -> Literal["before"] | None:
        is_claim = (sent.kind, sent.sql) == ("B", text("claim_free_jobs", db.schema))
        return "before" if is_claim and asked.is_set() and not late.is_set() else None

    async def delay(session: Session) -> None:
        late.set()
        session.hang_up()
        await go_on.wait()

    asked = asyncio.Event()
    async with Proxy(db.dsn, rule, delay) as proxy, run_worker(work, database_url=proxy.dsn) as running:
        asked.set()
        first = await sql.add("work")
        await late.wait()
        await ran.total(1)  # through a new connection
        (second,) = await sql.add_many(1, "work")  # nobody is told
        go_on.set()
        await until(lambda: claims_through(proxy) == 1, "the old claim has arrived")
        running.worker.claimer.look()
        await ran.total(2)
        await until(lambda: is_empty(sql), "both are released")
    assert ran.runs == {first: 1, second: 1}


def claims_through(proxy: Proxy) -> int:
    return sum(session.role == "claim" for session in proxy.sessions)
