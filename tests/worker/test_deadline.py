"""A job with a deadline: run before it, a dead letter that was never run after it."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backfill.model import DlqFilter, JobSpec, task
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner

    from backfill.client import BackfillClient


async def test_a_job_past_its_deadline_is_a_dead_letter_unrun(
    client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    ran: list[str] = []

    @task("dated")
    async def dated(payload: str) -> None:
        ran.append(payload)

    now = datetime.now(UTC)
    await client.enqueue(dated, "late", JobSpec(deadline=now - timedelta(minutes=1)))
    await client.enqueue(dated, "in time", JobSpec(deadline=now + timedelta(hours=1)))
    assert await (await make_runner(dated)).process_available_jobs() == 2
    assert ran == ["in time"]
    (entry,) = (await client.list_dlq_jobs(DlqFilter())).jobs
    assert entry.payload == "late"
    assert "DeadlinePassedError" in entry.failure_reason
    assert await client.count_jobs() == 0


async def test_a_requeue_leaves_a_deadline_behind_that_has_passed(
    client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    ran: list[object] = []

    @task("dated")
    async def dated(payload: str, ctx: WorkerContext) -> None:
        ran.append((payload, ctx.job.extras.deadline))

    later = datetime.now(UTC) + timedelta(hours=1)
    await client.enqueue(dated, "late", JobSpec(deadline=datetime.now(UTC) - timedelta(minutes=1)))
    runner = await make_runner(dated)
    await runner.process_available_jobs()
    (job_id,) = [
        outcome.unwrap().id for outcome in await client.enqueue_many([(dated, "in time", JobSpec(deadline=later))])
    ]
    await client.fail_jobs([job_id], "by hand")
    assert ran == []
    assert await client.requeue_dlq_jobs(DlqFilter()) == (2, 0)
    await runner.process_available_jobs()
    assert ran == [("late", None), ("in time", later)]
    assert (await client.list_dlq_jobs()).jobs == []
