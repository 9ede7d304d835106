# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""The dead letter queue: looking at it, putting jobs in, and deleting entries.

An entry is *here* until it is requeued; then it is *out*, tied to its job by ``requeued_job_id``: the job's success deletes
it, its failure brings it back. Each move is one transaction, so a job is in exactly one of the two places.
"""

from typing import Any, Final

import asyncpg

from backfill.client.inspect import MOST_COUNTED, up_to_most
from backfill.client.jobs import MOVED_BY
from backfill.db import Connection
from backfill.errors import DatabaseError, InvalidJob, MalformedData
from backfill.model import (
    DlqFilter,
    DlqJob,
    DlqJobList,
    DlqStats,
    Job,
    checked_int,
    checked_text,
    decode_flags_text,
    decode_payload,
    encode_flags,
    encode_payload,
)
from backfill.schema import install
from backfill.sql import text

LOWEST_ID: Final = -(2**63)
_ANY: Final = DlqFilter()


async def init_dlq(connection: Connection, schema: str) -> list[str]:
    """Make the dead letter queue's table and what else of the schema is missing; return what was done, in words.

    Raises:
        SchemaError: The schema that is there does not fit.
    """
    return await install(connection, schema)


async def list_dlq_jobs(connection: Connection, schema: str, dlq_filter: DlqFilter | None = None) -> DlqJobList:
    """Return one page of entries, newest first; those that are out have ``requeued_job_id``.

    Args:
        dlq_filter: Which entries, how many, and how many of the newest to leave out; None = the newest 50.
    """
    dlq_filter = dlq_filter or DlqFilter()
    chosen = chosen_by(dlq_filter)
    rows = await connection.fetch(text("list_dlq_jobs", schema), *chosen, dlq_filter.limit, dlq_filter.offset)
    count = await connection.fetchval(text("count_dlq_jobs", schema), *chosen, MOST_COUNTED + 1)
    return DlqJobList(
        jobs=[entry_of(row) for row in rows],
        total=up_to_most(count),
        offset=dlq_filter.offset,
        limit=dlq_filter.limit,
    )


async def page_dlq_jobs(
    connection: Connection,
    schema: str,
    dlq_filter: DlqFilter | None = None,
    *,
    after: int | None = None,
    limit: int = 50,
) -> list[DlqJob]:
    """Return entries in the order of their ids, the oldest first.

    For the next page give the last id as ``after``: pages neither skip nor repeat an entry while others come and go.

    Args:
        dlq_filter: Which entries; its ``limit`` and ``offset`` must be left alone. None = all.
        after: Only entries with a greater id.
        limit: How many at most, 1 to 10,000.

    Raises:
        InvalidJob: The filter pages itself, or a number is out of range.
    """
    chosen = chosen_by(whole(dlq_filter or DlqFilter()))
    args = (LOWEST_ID if after is None else checked_id(after), checked_int("limit", limit, 1, 10_000))
    return [entry_of(row) for row in await fetch_in_order(connection, schema, "page_dlq_jobs", *chosen, *args)]


async def get_dlq_job(connection: Connection, schema: str, entry_id: int) -> DlqJob | None:
    """Return the entry; None when there is none, as when its job was requeued and is done."""
    row = await connection.fetchrow(text("get_dlq_job", schema), checked_id(entry_id))
    return None if row is None else entry_of(row)


async def dlq_stats(connection: Connection, schema: str) -> DlqStats:
    """Return the dead letter queue in numbers; reads all of it."""
    row = await connection.fetchrow(text("dlq_stats", schema))
    if row is None:
        raise DatabaseError("the numbers of the dead letter queue did not come")
    fields = dict(row)
    return DlqStats(task_breakdown=dict(zip(fields.pop("tasks"), fields.pop("task_counts"), strict=True)), **fields)


async def delete_dlq_job(connection: Connection, schema: str, entry_id: int) -> bool:
    """Delete the entry, here or out (its job stays); return whether there was one."""
    return bool(await connection.fetchval(text("delete_dlq_jobs", schema), [checked_id(entry_id)]))


async def delete_dlq_by_job_key(connection: Connection, schema: str, job_key: str) -> bool:
    """Delete the entry of that job key, here or out (its job stays); return whether there was one."""
    return bool(await connection.fetchval(text("delete_dlq_by_job_key", schema), checked_text("job_key", job_key)))


async def add_to_dlq(
    connection: Connection, schema: str, job: Job, reason: str, last_error: Any = None, *, moved_by: str = MOVED_BY
) -> int:
    """Move a job to the dead letter queue; return the entry's id.

    The entry is made of the job as given. If the job is in the queue still, it is taken out in the same statement.

    Args:
        job: The job.
        reason: Why; the entry's ``failure_reason``.
        last_error: The error, as any JSON value; None = what the job has in ``last_error``.
        moved_by: The entry's ``created_by``.

    Raises:
        InvalidJob: The job is running (let it raise an error that is not retryable instead), the reason is empty, or
            the error has no faithful JSON form.
    """
    if last_error is None and job.last_error is not None:
        last_error = {"message": job.last_error}
    flags = encode_flags(job.flags, job.extras)
    row = await connection.fetchrow(
        text("add_to_dlq", schema),
        job.id,
        job.task_identifier,
        job.queue_name,
        job.key,
        job.payload_text,
        job.priority,
        job.max_attempts,
        job.created_at,
        job.run_at,
        None if flags is None else encode_payload(dict.fromkeys(flags, True)),
        checked_text("reason", reason),
        None if last_error is None else encode_payload(last_error),
        moved_by,
    )
    if row is None:
        raise InvalidJob(
            f"job {job.id} is running, so it was not moved to the dead letter queue: let its handler raise an error that is"
            " not retryable, or wait until it has ended",
        )
    return int(row["dlq_id"])


def chosen_by(dlq_filter: DlqFilter) -> tuple[Any, ...]:
    """The arguments of statements that say which entries are meant."""
    return (
        dlq_filter.task_identifier,
        dlq_filter.queue_name,
        dlq_filter.job_key,
        dlq_filter.failed_after,
        dlq_filter.failed_before,
        dlq_filter.requeued,
    )


async def fetch_in_order(connection: Connection, schema: str, name: str, *args: Any) -> list[asyncpg.Record]:
    """The rows of a statement that walks entries in the order of their ids; a page costs the same wherever it is."""
    async with connection.transaction():
        await connection.execute(text("walk_in_order", schema))
        return list(await connection.fetch(text(name, schema), *args))


def whole(dlq_filter: DlqFilter) -> DlqFilter:
    """The filter, if it means all entries that fit.

    Raises:
        InvalidJob: It has a limit or an offset.
    """
    if (dlq_filter.limit, dlq_filter.offset) != (_ANY.limit, _ANY.offset):
        raise InvalidJob(
            "limit and offset of a DlqFilter page a list; to change only some of the entries, give limit= to the call itself",
        )
    return dlq_filter


def entry_of(row: asyncpg.Record) -> DlqJob:
    """The entry of a row with the columns of one."""
    fields = dict(row)
    flags, extras = decode_flags_text(fields.pop("flags"))
    return DlqJob(
        stored_payload=fields.pop("payload"),
        last_error=_readable(fields.pop("last_error")),
        history=_readable(fields.pop("history")),
        flags=flags,
        extras=extras,
        **fields,
    )


def _readable(stored: str | None) -> Any:
    """The value of JSON text; the text itself where Python cannot hold it, so that a list never fails for one entry."""
    if stored is None:
        return None
    try:
        return decode_payload(stored)
    except MalformedData:
        return stored


def checked_id(entry_id: int) -> int:
    """Return the id of an entry when it can be one."""
    return checked_int("entry id", entry_id, -(2**63), 2**63 - 1)
