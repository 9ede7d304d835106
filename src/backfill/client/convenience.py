"""Adding a job in one of the usual ways, by name.

Each adds to the parallel queue, but for ``enqueue_serial``, and each returns what ``BackfillClient.enqueue`` returns and
raises what it raises.
"""

from typing import Any

import msgspec

from backfill.client.client import BackfillClient
from backfill.client.rows import TaskName
from backfill.model import EnqueueOutcome, JobSpec, Priority, Queue, RetryPolicy


async def enqueue_fast(
    client: BackfillClient, task: TaskName, payload: Any = msgspec.UNSET, job_key: str | None = None
) -> EnqueueOutcome:
    """Add a job that somebody waits for: priority FAST_DEFAULT."""
    return await client.enqueue(task, payload, JobSpec(priority=Priority.FAST_DEFAULT, job_key=job_key))


async def enqueue_bulk(
    client: BackfillClient, task: TaskName, payload: Any = msgspec.UNSET, job_key: str | None = None
) -> EnqueueOutcome:
    """Add a job that can wait: priority BULK_DEFAULT."""
    return await client.enqueue(task, payload, JobSpec(priority=Priority.BULK_DEFAULT, job_key=job_key))


async def enqueue_emergency(
    client: BackfillClient, task: TaskName, payload: Any = msgspec.UNSET, job_key: str | None = None
) -> EnqueueOutcome:
    """Add a job that goes before all others, now: priority EMERGENCY."""
    return await client.enqueue(task, payload, JobSpec(priority=Priority.EMERGENCY, job_key=job_key))


async def enqueue_fast_with_retries(
    client: BackfillClient, task: TaskName, payload: Any = msgspec.UNSET, job_key: str | None = None
) -> EnqueueOutcome:
    """Add an urgent job that is tried again soon or not at all: priority FAST_HIGH, ``RetryPolicy.fast()``."""
    spec = JobSpec(priority=Priority.FAST_HIGH, job_key=job_key, retry_policy=RetryPolicy.fast())
    return await client.enqueue(task, payload, spec)


async def enqueue_critical(
    client: BackfillClient, task: TaskName, payload: Any = msgspec.UNSET, job_key: str | None = None
) -> EnqueueOutcome:
    """Add an urgent job that must get done: priority FAST_HIGH, ``RetryPolicy.aggressive()``."""
    spec = JobSpec(priority=Priority.FAST_HIGH, job_key=job_key, retry_policy=RetryPolicy.aggressive())
    return await client.enqueue(task, payload, spec)


async def enqueue_bulk_with_retries(
    client: BackfillClient, task: TaskName, payload: Any = msgspec.UNSET, job_key: str | None = None
) -> EnqueueOutcome:
    """Add a job that can wait, also between its tries: priority BULK_DEFAULT, ``RetryPolicy.conservative()``."""
    spec = JobSpec(priority=Priority.BULK_DEFAULT, job_key=job_key, retry_policy=RetryPolicy.conservative())
    return await client.enqueue(task, payload, spec)


async def enqueue_serial(  # noqa: PLR0917 - the original's order
    client: BackfillClient,
    task: TaskName,
    payload: Any,
    queue_name: str,
    priority: int = Priority.BULK_DEFAULT,
    job_key: str | None = None,
) -> EnqueueOutcome:
    """Add a job to a serial queue, which runs one job at a time.

    Args:
        client: The client that adds it.
        task: The task, or its identifier.
        payload: Any JSON value.
        queue_name: The queue's name, 1 to 128 characters.
        priority: -32768 to 32767, the lower number first.
        job_key: The job's key, if it is to have one.
    """
    spec = JobSpec(priority=priority, queue=Queue.serial(queue_name), job_key=job_key)
    return await client.enqueue(task, payload, spec)
