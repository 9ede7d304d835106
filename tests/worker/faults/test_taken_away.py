"""An operator takes a live worker's locks away, and another worker runs the job meanwhile."""

import asyncio
from typing import Literal

import pytest
from tests.support.until import until
from tests.worker.conftest import Running, RunWorker, Sql
from tests.worker.faults.conftest import is_empty

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout, ValidationFailed
from backfill.model import JobSpec, Task, task
from backfill.worker import QueueConfig, WorkerContext

ONE_SLOT = [QueueConfig.default_queue(1)]
End = Literal["success", "retry", "for good"]


class TwoRuns:
    """A handler whose first run waits for `first_ends`, and whose second for `second_ends`."""

    def __init__(self, end: End = "success") -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.first_ends, self.second_ends = asyncio.Event(), asyncio.Event()
        self._end = end

    def task(self) -> Task[WorkerContext]:
        """The task."""

        @task("work")
        async def work(ctx: WorkerContext) -> None:
            first = not self.begun
            self.begun.append(ctx.worker_id)
            try:
                await (self.first_ends if first else self.second_ends).wait()
            except asyncio.CancelledError:
                self.cancelled.append(ctx.worker_id)
                raise
            if first and self._end == "retry":
                raise ConnectionTimeout("of the first run")
            if first and self._end == "for good":
                raise ValidationFailed("of the first run")

        return work

    async def have_begun(self, count: int) -> None:
        """Wait until that many runs have begun."""
        await until(lambda: len(self.begun) == count, f"{count} runs have begun")


async def take_away(client: BackfillClient, running: Running) -> None:
    assert await client.force_unlock_workers([running.worker.id]) == (1, 1)


@pytest.mark.parametrize("end", ["success", "retry", "for good"])
async def test_the_outcome_of_the_first_run_leaves_the_new_owner_s_row_alone(
    client: BackfillClient, sql: Sql, run_worker: RunWorker, end: End
) -> None:
    runs = TwoRuns(end)
    async with run_worker(runs.task(), queue_configs=ONE_SLOT) as first:
        await client.enqueue("work", spec=JobSpec(queue="serial"))
        await runs.have_begun(1)
        async with run_worker(runs.task(), queue_configs=ONE_SLOT) as second:
            await take_away(client, first)
            await runs.have_begun(2)
            before = await sql.rows("select * from graphile_worker._private_jobs")
            queues = await sql.rows("select * from graphile_worker._private_job_queues")
            runs.first_ends.set()
            await until(lambda: first.worker.releaser.stale == 1, "the first run's outcome was found stale")
            assert await sql.rows("select * from graphile_worker._private_jobs") == before
            assert await sql.rows("select * from graphile_worker._private_job_queues") == queues
            assert (
                before[0]["locked_by"] == queues[0]["locked_by"] == f"{second.worker.id}/{second.worker.claimer.claims}"
            )
            runs.second_ends.set()
            await until(lambda: is_empty(sql), "the second run is released")
    assert runs.begun == [first.worker.id, second.worker.id]
    assert await sql.locks() == (0, 0)
    assert await sql.dead() == []


async def test_a_run_whose_claim_was_taken_away_is_cancelled_when_locks_are_compared(
    client: BackfillClient, sql: Sql, run_worker: RunWorker
) -> None:
    runs = TwoRuns()
    async with run_worker(runs.task(), queue_configs=ONE_SLOT) as first:
        await client.enqueue("work", spec=JobSpec(queue="serial"))
        await runs.have_begun(1)
        async with run_worker(runs.task(), queue_configs=ONE_SLOT) as second:
            await take_away(client, first)
            await runs.have_begun(2)
            first.worker.claimer.compare()
            second.worker.claimer.compare()
            await until(lambda: first.worker.releaser.stale == 1, "the first run was cancelled and found stale")
            assert runs.cancelled == [first.worker.id]
            assert await sql.locks() == (1, 1)
            runs.second_ends.set()
            await until(lambda: is_empty(sql), "the second run is released")
        await client.enqueue("work")  # the slot of the cancelled run is as good as new
        await until(lambda: is_empty(sql), "the new job is done")
    assert runs.begun == [first.worker.id, second.worker.id, first.worker.id]
    assert runs.cancelled == [first.worker.id]
    assert await sql.locks() == (0, 0)


async def test_comparing_locks_leaves_a_worker_s_own_work_alone(
    client: BackfillClient, sql: Sql, run_worker: RunWorker
) -> None:
    runs = TwoRuns()
    async with run_worker(runs.task()) as running:
        await client.enqueue_many([("work", None, JobSpec(queue=queue)) for queue in ("serial", None)])
        await runs.have_begun(2)
        claims = running.worker.claimer.claims
        running.worker.claimer.compare()
        running.worker.claimer.look()
        await until(lambda: running.worker.claimer.claims > claims, "it has compared and claimed again")
        assert await sql.locks() == (2, 1)
        runs.first_ends.set()
        runs.second_ends.set()
        await until(lambda: is_empty(sql), "both are released")
    assert (runs.cancelled, running.worker.releaser.stale) == ([], 0)
