"""Clearing away what no job needs."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backfill import BackfillClient, JobSpec
from backfill.client import CleanupTask
from backfill.errors import InvalidJob

if TYPE_CHECKING:
    from tests.client.conftest import Raw

QUEUES = "select array_agg(queue_name order by queue_name) from graphile_worker._private_job_queues"
TASKS = "select array_agg(identifier order by identifier) from graphile_worker._private_tasks"


async def leave_names(client: BackfillClient, raw: "Raw", *names: str) -> None:
    """Have tasks and queues of these names without jobs."""
    for name in names:
        await client.enqueue(name, 1, JobSpec(queue=name))
    await raw.run("delete from graphile_worker._private_jobs")


async def test_only_queues_by_default(client: BackfillClient, raw: "Raw") -> None:
    """C-040, R-35."""
    await leave_names(client, raw, "old", "used", "held")
    await client.enqueue("used", 1, JobSpec(queue="used"))
    await client.enqueue("used", 2)
    await raw.run(
        "update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'w' where queue_name = 'held'"
    )
    assert await client.cleanup() == {CleanupTask.GC_JOB_QUEUES: 1}
    assert await raw.value(QUEUES) == ["held", "used"]
    assert await raw.value(TASKS) == ["held", "old", "used"]


async def test_tasks_but_those_to_keep(client: BackfillClient, raw: "Raw") -> None:
    """C-041, R-35."""
    await leave_names(client, raw, "old", "older", "kept")
    await client.enqueue("used")
    cleared = await client.cleanup(["GC_TASK_IDENTIFIERS"], keep_tasks=["kept"])
    assert cleared == {CleanupTask.GC_TASK_IDENTIFIERS: 2}
    assert await raw.value(TASKS) == ["kept", "used"]
    assert await raw.value(QUEUES) == ["kept", "old", "older"]


async def test_dead_jobs_only_by_name(client: BackfillClient, raw: "Raw") -> None:
    """C-039, R-35."""
    jobs = [(await client.enqueue("t", n, JobSpec(max_attempts=1))).unwrap() for n in range(4)]
    await raw.exhaust(jobs[0].id)
    await raw.exhaust(jobs[1].id)
    await raw.claim(jobs[2].id)  # its last run
    await client.cleanup(["GC_JOB_QUEUES", "GC_TASK_IDENTIFIERS"])
    assert len(await raw.jobs()) == 4
    assert await client.cleanup([CleanupTask.DELETE_PERMAFAILED_JOBS]) == {CleanupTask.DELETE_PERMAFAILED_JOBS: 2}
    assert [job["payload"] for job in await raw.jobs()] == ["2", "3"]


async def test_dead_jobs_first_so_that_their_names_go_too(client: BackfillClient, raw: "Raw") -> None:
    job = (await client.enqueue("t", 1, JobSpec(queue="q"))).unwrap()
    await raw.exhaust(job.id)
    cleared = await client.cleanup(list(reversed(CleanupTask)))
    assert list(cleared.values()) == [1, 1, 1]


async def test_an_entry_whose_dead_job_is_deleted_is_here_again(client: BackfillClient, raw: "Raw") -> None:
    job = (await client.enqueue("t", {"a": 1})).unwrap()
    (entry_id,) = (await client.fail_jobs([job.id], "first")).values()
    again = await client.requeue_dlq_job(entry_id)
    await raw.exhaust(again.id)
    await client.cleanup(["DELETE_PERMAFAILED_JOBS"])
    entry = await client.get_dlq_job(entry_id)
    assert entry is not None
    assert not entry.is_out


async def test_more_than_a_page(client: BackfillClient, raw: "Raw", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill.client.cleanup._PAGE", 3)
    await leave_names(client, raw, *(f"n{n}" for n in range(10)))
    for n in range(10):
        await raw.exhaust((await client.enqueue("t", n, JobSpec(run_at=datetime(2100, 1, 1, tzinfo=UTC)))).unwrap().id)
    assert list((await client.cleanup(list(CleanupTask))).values()) == [10, 11, 10]


@pytest.mark.parametrize("what", ["tasks", "job_queues"])
async def test_rows_that_somebody_has_locked_are_left_without_waiting(
    client: BackfillClient, raw: "Raw", what: str
) -> None:
    await leave_names(client, raw, "a", "b")
    async with asyncio.timeout(30), raw.connection.transaction():
        await raw.rows(f"select 1 from graphile_worker._private_{what} order by id limit 1 for key share")
        cleared = await client.cleanup(["GC_TASK_IDENTIFIERS" if what == "tasks" else "GC_JOB_QUEUES"])
    assert list(cleared.values()) == [1]


async def test_a_job_that_comes_while_its_task_is_collected_finds_it_or_makes_it_anew(
    client: BackfillClient, raw: "Raw"
) -> None:
    names = [f"t{n}" for n in range(100)]
    done = asyncio.Event()

    async def adder() -> None:
        for n, name in enumerate(names):
            await raw.run(
                "insert into graphile_worker._private_tasks (identifier) values ($1) on conflict do nothing", name
            )
            outcomes = await client.enqueue_many([(name,)]) if n % 2 else [await client.enqueue(name)]
            assert outcomes[0].is_enqueued

    async def collector() -> None:
        while not done.is_set():
            await client.cleanup(["GC_TASK_IDENTIFIERS"])

    async with asyncio.TaskGroup() as everybody:
        for _ in range(3):
            everybody.create_task(collector())
        await adder()
        done.set()
    assert [job["task"] for job in await raw.jobs()] == names, "a job without a task would be invisible for ever"


async def test_what_cannot_be_is_refused(client: BackfillClient) -> None:
    with pytest.raises(InvalidJob, match="DELETE_PERMAFAILED_JOBS, GC_TASK_IDENTIFIERS, GC_JOB_QUEUES"):
        await client.cleanup(["everything"])
    with pytest.raises(InvalidJob, match="collection"):
        await client.cleanup("GC_JOB_QUEUES")
