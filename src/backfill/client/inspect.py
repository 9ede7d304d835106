# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Looking at jobs.

A job's state is computed by the database, with its clock: *running* is locked; *dead* has used up its attempts; *failed* waits
to be retried; *scheduled* waits for its time and has not run; *ready* is due. Counts stop at 10,000, so that they cost no
more however many jobs there are.
"""

from typing import Final

from backfill.client.rows import job_of, jobs_of
from backfill.db import Connection
from backfill.errors import InvalidJob
from backfill.model import Job, JobState, checked_int
from backfill.sql import text

MOST_COUNTED: Final = 10_000
_MOST_LISTED: Final = 10_000


async def get_job(connection: Connection, schema: str, job_id: int) -> Job | None:
    """Return the job with its payload and its state; None when there is none, as when it is done.

    Args:
        job_id: The job's number.

    Raises:
        InvalidJob: The id is no int, or beyond 64 bits.
    """
    row = await connection.fetchrow(text("get_job", schema), checked_int("job_id", job_id, -(2**63), 2**63 - 1))
    return None if row is None else job_of(row)


async def list_jobs(
    connection: Connection,
    schema: str,
    *,
    state: JobState | str | None = None,
    task: str | None = None,
    queue: str | None = None,
    key: str | None = None,
    after: int = 0,
    limit: int = 50,
) -> list[Job]:
    """Return jobs with payload and state, in the order of their ids.

    For the next page give the last id as ``after``: pages neither skip nor repeat a job while others come and go.

    Args:
        state: Only jobs in this state.
        task: Only jobs of this task.
        queue: Only jobs of this serial queue; the empty string is the parallel queue.
        key: Only the job of this key.
        after: Only jobs with a greater id.
        limit: How many at most, 1 to 10,000.

    Raises:
        InvalidJob: There is no such state, or a number is out of range.
    """
    checked_int("after", after, -(2**63), 2**63 - 1)
    checked_int("limit", limit, 1, _MOST_LISTED)
    chosen = (task, queue, key, _checked_state(state))
    return jobs_of(await connection.fetch(text("list_jobs", schema), *chosen, after, limit))


async def count_jobs(
    connection: Connection,
    schema: str,
    *,
    state: JobState | str | None = None,
    task: str | None = None,
    queue: str | None = None,
    key: str | None = None,
) -> int | None:
    """Return how many jobs ``list_jobs`` would give in all; None when they are more than 10,000.

    Raises:
        InvalidJob: There is no such state.
    """
    chosen = (task, queue, key, _checked_state(state))
    return up_to_most(await connection.fetchval(text("count_jobs", schema), *chosen, MOST_COUNTED + 1))


def up_to_most(count: int) -> int | None:
    """Return the count, or None when counting stopped because there are more than 10,000."""
    return count if count <= MOST_COUNTED else None


def _checked_state(state: JobState | str | None) -> str | None:
    if state is None:
        return None
    try:
        return JobState(state).value
    except ValueError as error:
        raise InvalidJob(f"state must be one of {', '.join(JobState)}, not {state!r}") from error
