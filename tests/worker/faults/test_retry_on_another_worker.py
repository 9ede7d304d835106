"""A job's retries follow its policy by the database's record, whichever worker runs them."""

from datetime import datetime, timedelta
from typing import Any

from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Ran

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout
from backfill.model import JobSpec, RetryPolicy, task
from backfill.worker import WorkerContext

POLICY = RetryPolicy.fast()


async def test_each_run_is_on_a_new_worker_and_not_before_its_recorded_time(
    client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    starts: list[datetime] = []
    recorded: list[datetime] = []

    @task("work")
    async def work(ctx: WorkerContext) -> None:
        starts.append(await ctx.pool.fetchval("select clock_timestamp()"))
        recorded.append(ctx.job.run_at)
        ran.note(ctx.worker_id)
        raise ConnectionTimeout("each time")

    async def is_released() -> Any:
        return not await sql.count("locked_at is not null")

    await client.enqueue("work", spec=JobSpec(retry_policy=POLICY))
    for attempt in range(POLICY.max_attempts):
        due = await sql.value("select run_at from graphile_worker._private_jobs")
        async with run_worker(work, ready=False):
            await ran.total(attempt + 1)
            await until(is_released, "the run is released")
        released = await sql.value("select clock_timestamp()")
        assert recorded[attempt] == due
        assert starts[attempt] >= due
        if attempt + 1 < POLICY.max_attempts:
            # The delay counts from the release, which was between the handler's start and now.
            delay = POLICY.initial_delay * POLICY.backoff_multiplier**attempt
            jitter = delay * POLICY.jitter_factor
            run_at = await sql.value("select run_at from graphile_worker._private_jobs")
            assert starts[attempt] + delay - jitter <= run_at <= released + delay + jitter + timedelta(microseconds=1)
    assert list(ran.runs.values()) == [1, 1, 1]
    assert await sql.count() == 0
    (dead,) = await sql.dead()
    assert dead["failure_reason"] == "Job exceeded maximum retry attempts (3/3)"
