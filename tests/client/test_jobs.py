"""Changing jobs from outside."""

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, Job, JobSpec
from backfill.errors import InvalidJob

if TYPE_CHECKING:
    from tests.client.conftest import Heard, Raw

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


async def add(client: BackfillClient, payload: Any = 1, **spec: Any) -> Job:
    """Add a job, and be done with its notification."""
    (outcome,) = await client.enqueue_many([("t", payload, JobSpec(**spec))])
    return outcome.unwrap()


class Kinds:
    """One job of each kind that the operations tell apart, as upstream's own tests have them."""

    def __init__(self, exhausted: Job, first: Job, second: Job, locked: Job, beside: Job) -> None:
        self.exhausted, self.first, self.second, self.locked, self.beside = exhausted, first, second, locked, beside
        self.listed = [exhausted.id, first.id, second.id, locked.id, 10**15]
        self.free = [exhausted.id, first.id, second.id]


@pytest.fixture
async def kinds(client: BackfillClient, raw: "Raw") -> Kinds:
    jobs = [await add(client, n, run_at=FUTURE, queue="q") for n in range(5)]
    found = Kinds(*jobs)
    await raw.exhaust(found.exhausted.id)
    await raw.claim(found.locked.id)
    return found


async def test_complete_deletes_what_nobody_runs(client: BackfillClient, raw: "Raw", kinds: Kinds) -> None:
    """C-035, R-33."""
    done = await client.complete_jobs(kinds.listed)
    assert [job.id for job in done] == kinds.free
    assert (done[1].task_identifier, done[1].queue_name, done[1].payload) == ("t", "q", 1)
    assert [job["id"] for job in await raw.jobs()] == [kinds.locked.id, kinds.beside.id]


async def test_cancel_deletes_what_nobody_has_locked(client: BackfillClient, raw: "Raw", kinds: Kinds) -> None:
    await raw.run(
        "update graphile_worker._private_jobs set locked_at = now() - interval '5 hours' where id = $1", kinds.locked.id
    )
    cancelled, requested = await client.cancel_jobs(kinds.listed)
    assert [job.id for job in cancelled] == kinds.free
    assert [job.id for job in requested] == [kinds.locked.id]
    assert (cancelled[2].task_identifier, cancelled[2].queue_name, cancelled[2].payload) == ("t", "q", 2)
    assert [job["id"] for job in await raw.jobs()] == [kinds.locked.id, kinds.beside.id]


async def test_fail_moves_to_the_dead_letter_queue(client: BackfillClient, raw: "Raw", kinds: Kinds) -> None:
    """C-036, R-33: to a place of its own, which is what is different here."""
    entries = await client.fail_jobs(kinds.listed, "customer is gone")
    assert sorted(entries) == kinds.free
    assert [job["id"] for job in await raw.jobs()] == [kinds.locked.id, kinds.beside.id]
    entry = await client.get_dlq_job(entries[kinds.first.id])
    assert entry is not None
    assert (entry.failure_reason, entry.original_job_id, entry.payload) == ("customer is gone", kinds.first.id, 1)
    assert (entry.task_identifier, entry.queue_name, entry.created_by) == ("t", "q", "backfill client")


async def test_fail_asks_for_a_reason(client: BackfillClient, kinds: Kinds) -> None:
    with pytest.raises(InvalidJob, match="reason must not be empty"):
        await client.fail_jobs(kinds.listed, "")


async def test_reschedule_changes_what_is_given(client: BackfillClient, raw: "Raw", kinds: Kinds) -> None:
    """C-037, R-33."""
    later = FUTURE + timedelta(days=1)
    changed = await client.reschedule_jobs(kinds.listed, run_at=later, priority=-3, attempts=1, max_attempts=20)
    assert [job.id for job in changed] == kinds.free
    assert {(job.run_at, job.priority, job.attempts, job.max_attempts) for job in changed} == {(later, -3, 1, 20)}
    again = await client.reschedule_jobs([kinds.first.id], priority=9)
    assert (again[0].run_at, again[0].priority, again[0].attempts, again[0].max_attempts) == (later, 9, 1, 20)
    for untouched in (kinds.locked, kinds.beside):
        assert (await raw.job(untouched.id))["run_at"] == FUTURE
    assert (await raw.job(kinds.exhausted.id))["last_error"] == "it broke"


async def test_reschedule_wakes_workers_for_what_is_due_then(
    client: BackfillClient, raw: "Raw", kinds: Kinds, heard: "Heard"
) -> None:
    await heard()
    await client.reschedule_jobs(kinds.free, priority=1)
    await client.reschedule_jobs([kinds.locked.id], run_at=datetime.now(UTC) - timedelta(hours=1))
    assert await heard() == []
    # The exhausted job stays out of reach: its attempts are used up.
    await client.reschedule_jobs(kinds.free, run_at=datetime.now(timezone(timedelta(hours=5))) - timedelta(hours=1))
    assert [told["count"] for told in await heard()] == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"priority": 40000}, "priority must be -32768 to 32767"),
        ({"attempts": -1}, "attempts must be 0 to 32767"),
        ({"max_attempts": 0}, "max_attempts must be 1 to 32767"),
        ({"run_at": datetime(2100, 1, 1)}, "no time zone"),  # noqa: DTZ001 - the point
    ],
)
async def test_reschedule_refuses_what_cannot_be(client: BackfillClient, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        await client.reschedule_jobs([1], **change)


async def test_retry_begins_anew_and_now(client: BackfillClient, raw: "Raw", kinds: Kinds, heard: "Heard") -> None:
    await heard()
    retried = await client.retry_jobs(kinds.listed)
    assert [job.id for job in retried] == kinds.free
    assert {job.attempts for job in retried} == {0}
    assert await raw.value(
        "select bool_and(is_available and run_at <= now()) from graphile_worker._private_jobs where id = any($1)",
        kinds.free,
    )
    assert [told["count"] for told in await heard()] == [3]


@pytest.mark.parametrize("ids", [7, "12", ["x"], [2**63], [True]])
async def test_ids_that_cannot_be_are_refused(client: BackfillClient, ids: Any) -> None:
    for change in (client.complete_jobs, client.cancel_jobs, client.retry_jobs, client.reschedule_jobs):
        with pytest.raises(InvalidJob):
            await change(ids)


async def test_remove_deletes_a_waiting_job(client: BackfillClient, raw: "Raw") -> None:
    job = await add(client, {"a": 1}, job_key="k", queue="q")
    removed = await client.remove_job("k")
    assert removed is not None
    assert (removed.id, removed.key, removed.queue_name, removed.payload) == (job.id, "k", "q", {"a": 1})
    assert removed.locked_by is None
    assert await raw.jobs() == []


async def test_remove_detaches_a_running_job(client: BackfillClient, raw: "Raw") -> None:
    job = await add(client, job_key="k")
    await raw.claim(job.id)
    removed = await client.remove_job("k")
    assert removed is not None
    assert (removed.id, removed.key, removed.locked_by) == (job.id, None, "worker/1")
    row = await raw.job(job.id)
    assert (row["key"], row["attempts"], row["locked_by"]) == (None, 8, "worker/1")


async def test_remove_of_a_key_that_no_job_has(client: BackfillClient) -> None:
    assert await client.remove_job("nobody") is None
    with pytest.raises(InvalidJob, match="job_key"):
        await client.remove_job("")


@pytest.mark.parametrize(("operation", "entries"), [("complete", []), ("cancel", [None]), ("remove", [None])])
async def test_a_requeued_job_stays_tied_to_its_entry(
    client: BackfillClient, operation: str, entries: list[int | None]
) -> None:
    """Done: the entry goes. Taken out of the queue without being done: the entry is here again."""
    job = await add(client, job_key="k")
    (entry_id,) = (await client.fail_jobs([job.id], "first")).values()
    again = await client.requeue_dlq_job(entry_id)
    if operation == "complete":
        await client.complete_jobs([again.id])
    elif operation == "cancel":
        await client.cancel_jobs([again.id])
    else:
        await client.remove_job("k")
    assert [entry.requeued_job_id for entry in (await client.list_dlq_jobs()).jobs] == entries


async def test_remove_of_a_running_requeued_job_leaves_its_entry_out(client: BackfillClient, raw: "Raw") -> None:
    job = await add(client, job_key="k")
    (entry_id,) = (await client.fail_jobs([job.id], "first")).values()
    again = await client.requeue_dlq_job(entry_id)
    await raw.claim(again.id)
    await client.remove_job("k")
    assert [entry.requeued_job_id for entry in (await client.list_dlq_jobs()).jobs] == [again.id]


async def test_force_unlock_frees_jobs_and_queues_of_the_given_workers_only(
    client: BackfillClient, raw: "Raw", heard: "Heard"
) -> None:
    """C-038, R-34."""
    jobs = [await add(client, n, queue=f"q{n}") for n in range(4)]
    lockers = ["pool-1", "backfill-aa/17", "backfill-aab/3", "pool-2"]
    for job, locker in zip(jobs, lockers, strict=True):
        await raw.claim(job.id, locker)
        await raw.run(
            "update graphile_worker._private_job_queues set locked_at = now(), locked_by = $2 where queue_name = $1",
            job.queue_name,
            locker,
        )
    await heard()
    freed = await client.force_unlock_workers(["pool-1", "backfill-aa", "nobody"])
    assert (freed.jobs, freed.queues) == (2, 2)
    assert [job["locked_by"] for job in await raw.jobs()] == [None, None, *lockers[2:]]
    assert [job["attempts"] for job in await raw.jobs()] == [1] * 4
    queues = await raw.rows("select locked_by from graphile_worker._private_job_queues order by queue_name")
    assert [queue["locked_by"] for queue in queues] == [None, None, *lockers[2:]]
    assert [told["count"] for told in await heard()] == [2]
    assert (await client.force_unlock_workers(["backfill-aab/3"])).jobs == 1
    with pytest.raises(InvalidJob, match="collection"):
        await client.force_unlock_workers("pool-2")
