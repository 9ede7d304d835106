# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Changing jobs from outside: remove, complete, fail, reschedule, retry, cancel, unlock.

None of these takes a job from under a worker that runs it; cancelling asks the worker to end it. A job that came out of the dead letter queue is still tied to its
entry there: completing it deletes the entry, taking it out of the queue in another way brings the entry back.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from backfill.client.rows import job_of, jobs_of
from backfill.db import Connection
from backfill.errors import InvalidJob
from backfill.model import Job, checked_int, checked_text, checked_time
from backfill.sql import text

# Who moved a job to the dead letter queue, in the entry's created_by.
MOVED_BY: Final = "backfill client"


class Cancelled(NamedTuple):
    """What ``cancel_jobs`` did.

    Attributes:
        cancelled: The jobs that waited: they are out of the queue.
        requested: The jobs that run: their workers have been told; ``locked_by`` says which these are.
    """

    cancelled: list[Job]
    requested: list[Job]


class Unlocked(NamedTuple):
    """What ``force_unlock_workers`` freed.

    Attributes:
        jobs: How many jobs.
        queues: How many serial queues.
    """

    jobs: int
    queues: int


async def remove_job(connection: Connection, schema: str, job_key: str) -> Job | None:
    """Take the job of a key out of the queue.

    One that is running keeps running; it loses its key and is not retried.

    Args:
        job_key: The job's key.

    Returns:
        The job as it was removed, or as it now runs (``locked_by`` is set then); None when no job has the key.

    Raises:
        InvalidJob: The key cannot be one.
    """
    checked_text("job_key", job_key)
    async with connection.transaction():
        row = await connection.fetchrow(text("remove_job", schema), job_key)
        if row is None:
            return None
        job = job_of(row)
        if job.locked_by is None:
            await _bring_back(connection, schema, [job])
    return job


async def complete_jobs(connection: Connection, schema: str, ids: Collection[int]) -> list[Job]:
    """Delete jobs that nobody runs, as if they were done; return them.

    Args:
        ids: The jobs' numbers; those that are running or gone are left out of the answer.
    """
    async with connection.transaction():
        jobs = jobs_of(await connection.fetch(text("complete_jobs", schema), checked_ids(ids)))
        requeued = _requeued(jobs)
        if requeued:
            await connection.execute(text("forget_requeued", schema), requeued)
    return jobs


async def cancel_jobs(
    connection: Connection,
    schema: str,
    ids: Collection[int],
    *,
    dead_letter: bool = False,
    reason: str | None = None,
) -> Cancelled:
    """Take jobs out of the queue, and have the handlers of those that run cancelled.

    A running job ends when its handler does: as if it had never been if that was cancelled or fails, as done if it ends well
    all the same. The wish is stored first, so it holds even if the worker dies. Workers other than backfill's can't be told;
    what they run is cancelled when they let go of it.

    Args:
        ids: The jobs' numbers; those that are gone are left out of the answer.
        dead_letter: Make them dead letters instead of deleting them.
        reason: Why; for the dead letters.

    Raises:
        InvalidJob: The reason cannot be stored.
    """
    because = None if reason is None else checked_text("reason", reason)
    numbers = checked_ids(ids)
    async with connection.transaction():
        # In this order: a job that is released in between is seen by the second statement.
        running = jobs_of(await connection.fetch(text("request_cancellations", schema), numbers, dead_letter, because))
        if dead_letter:
            waiting = await _bury_waiting(connection, schema, numbers, because)
        else:
            waiting = jobs_of(await connection.fetch(text("cancel_jobs", schema), numbers))
            await _bring_back(connection, schema, waiting)
        done = {job.id for job in waiting}
        if running:
            await connection.execute(text("tell_of_cancellations", schema))
    return Cancelled(waiting, [job for job in running if job.id not in done])


async def _bury_waiting(connection: Connection, schema: str, ids: list[int], reason: str | None) -> list[Job]:
    """Make dead letters of the jobs that nobody has locked; the jobs as they were."""
    jobs = jobs_of(await connection.fetch(text("lock_waiting", schema), ids))
    if jobs:
        said = "Job was cancelled" if reason is None else f"Job was cancelled: {reason}"
        await connection.fetch(text("bury_jobs", schema), [job.id for job in jobs], said, MOVED_BY)
    return jobs


async def fail_jobs(connection: Connection, schema: str, ids: Collection[int], reason: str) -> dict[int, int]:
    """Move jobs that nobody runs to the dead letter queue, in one statement.

    Args:
        ids: The jobs' numbers; those that are running or gone are left out of the answer.
        reason: Why; the entry's ``failure_reason``.

    Returns:
        The id of the entry for the id of each job that was moved.

    Raises:
        InvalidJob: The reason is empty or cannot be stored.
    """
    rows = await connection.fetch(text("bury_jobs", schema), checked_ids(ids), checked_text("reason", reason), MOVED_BY)
    return {row["job_id"]: row["dlq_id"] for row in rows}


async def reschedule_jobs(
    connection: Connection,
    schema: str,
    ids: Collection[int],
    *,
    run_at: datetime | None = None,
    priority: int | None = None,
    attempts: int | None = None,
    max_attempts: int | None = None,
) -> list[Job]:
    """Change jobs that nobody runs; what is None stays as it is. Jobs that are due by now start now.

    Args:
        ids: The jobs' numbers; those that are running or gone are left out of the answer.
        run_at: When they are due, with a time zone.
        priority: -32768 to 32767, the lower number first.
        attempts: How many of their runs count as used, 0 to 32767.
        max_attempts: How many runs they may have, 1 to 32767.

    Returns:
        The jobs as they now are.

    Raises:
        InvalidJob: A value is out of range, or ``run_at`` has no time zone.
    """
    args = (
        None if run_at is None else checked_time("run_at", run_at),
        None if priority is None else checked_int("priority", priority, -32768, 32767),
        None if attempts is None else checked_int("attempts", attempts, 0, 32767),
        None if max_attempts is None else checked_int("max_attempts", max_attempts, 1, 32767),
    )
    return jobs_of(await connection.fetch(text("reschedule_jobs", schema), checked_ids(ids), *args))


async def retry_jobs(connection: Connection, schema: str, ids: Collection[int]) -> list[Job]:
    """Have jobs that nobody runs begin anew, now: no attempts used, due at once. Return them as they now are.

    Args:
        ids: The jobs' numbers; those that are running or gone are left out of the answer.
    """
    return jobs_of(await connection.fetch(text("retry_jobs", schema), checked_ids(ids)))


async def force_unlock_workers(connection: Connection, schema: str, worker_ids: Collection[str]) -> Unlocked:
    """Take all locks of workers away that are known to be dead; their jobs that are due start elsewhere at once.

    A worker that is alive goes on with its jobs, which then run twice at the same time.

    Args:
        worker_ids: Ids as ``locked_by`` has them, with or without the claim's number behind the slash.

    Raises:
        InvalidJob: An id is no text, or the ids are one text.
    """
    if isinstance(worker_ids, str):
        raise InvalidJob(f"worker_ids must be a collection of ids, not the str {worker_ids!r}")
    ids = [checked_text("worker id", worker_id) for worker_id in worker_ids]
    row = await connection.fetchrow(text("force_unlock_workers", schema), ids)
    return Unlocked(0, 0) if row is None else Unlocked(row["jobs"], row["queues"])


def checked_ids(ids: Collection[int] | int) -> list[int]:
    """Return the ids as a list, each of them checked.

    Raises:
        InvalidJob: It is one id rather than a collection, or one is no int of 64 bits.
    """
    if isinstance(ids, int):
        raise InvalidJob(f"ids must be a collection of ints, not the int {ids!r}")
    return [checked_int("job id", job_id, -(2**63), 2**63 - 1) for job_id in ids]


def _requeued(jobs: Sequence[Job]) -> list[int]:
    """The ids of those jobs that may have come out of the dead letter queue; a job that was added again has lost the flag."""
    return [job.id for job in jobs if job.extras.dlq or job.key is not None]


async def _bring_back(connection: Connection, schema: str, jobs: Sequence[Job]) -> None:
    requeued = _requeued(jobs)
    if requeued:
        await connection.execute(text("bring_back", schema), requeued)
