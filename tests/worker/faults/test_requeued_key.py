"""A job that came out of the dead letter queue and is added again under its key, as an application does that knows of neither.

Adding it again drops the flag that says where it came from. Its entry must not stay out for ever all the same.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Ran, is_empty

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout
from backfill.model import DlqJob, JobSpec, task
from backfill.worker import WorkerContext

KEYED = JobSpec(job_key="key")


@pytest.fixture
async def job_id(client: BackfillClient) -> int:
    """A job that came out of the dead letter queue and was added again."""
    job = (await client.enqueue("work", "old", KEYED)).unwrap()
    (entry,) = (await client.fail_jobs([job.id], "for the test")).values()
    requeued = await client.requeue_dlq_job(entry)
    again = (await client.enqueue("work", "new", KEYED)).unwrap()
    assert again.id == requeued.id
    assert not again.extras.dlq
    return again.id


async def entries(client: BackfillClient) -> list[DlqJob]:
    return (await client.list_dlq_jobs()).jobs


async def test_its_success_deletes_its_entry(
    client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran, job_id: int
) -> None:
    @task("work")
    async def work(payload: str) -> None:
        ran.note(payload)

    async with run_worker(work, ready=False):
        await ran.total(1)
        await until(lambda: is_empty(sql), "it is released")
    assert ran.runs == {"new": 1}
    assert await entries(client) == []


async def test_its_failure_after_it_was_superseded_leaves_one_entry(
    client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran, job_id: int
) -> None:
    @task("work")
    async def work(payload: str, ctx: WorkerContext) -> None:
        ran.note(payload)
        if payload == "new":
            await ctx.enqueue("work", "newest", KEYED)
            raise ConnectionTimeout("superseded meanwhile")

    async with run_worker(work, ready=False):
        await ran.total(2)
        await until(lambda: is_empty(sql), "both are released")
    (entry,) = await entries(client)
    assert (entry.payload, entry.is_out, entry.failure_count) == ("new", False, 2)


@pytest.mark.parametrize(
    ("take_out", "is_back"),
    [
        (lambda client, job_id: client.cancel_jobs([job_id]), True),
        (lambda client, _: client.remove_job("key"), True),
        (lambda client, job_id: client.complete_jobs([job_id]), False),
    ],
    ids=["cancel_jobs", "remove_job", "complete_jobs"],
)
async def test_taking_it_out_of_the_queue_settles_its_entry(
    client: BackfillClient, job_id: int, take_out: Callable[[BackfillClient, int], Awaitable[Any]], is_back: bool
) -> None:
    await take_out(client, job_id)
    assert await client.list_jobs() == []
    assert [(entry.payload, entry.is_out) for entry in await entries(client)] == ([("old", False)] if is_back else [])
