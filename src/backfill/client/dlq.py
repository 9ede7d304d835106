# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""The dead letter queue: looking at it and moving jobs in and out of it.

An entry is *here* until it is requeued; then it is *out*, tied to its job by ``requeued_job_id``: the job's success deletes
it, its failure brings it back. Each move is one transaction, so a job is in exactly one of the two places.
"""

from typing import Any

import asyncpg
import msgspec

from backfill.client.inspect import MOST_COUNTED, up_to_most
from backfill.client.jobs import MOVED_BY
from backfill.client.rows import job_of
from backfill.db import Connection
from backfill.errors import DatabaseError, DlqEntryNotFound, InvalidJob, KeyInUse, MalformedData
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
from backfill.schema import install, is_familiar
from backfill.sql import text

_TRIES = 20


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
        jobs=[_entry(row) for row in rows],
        total=up_to_most(count),
        offset=dlq_filter.offset,
        limit=dlq_filter.limit,
    )


async def get_dlq_job(connection: Connection, schema: str, entry_id: int) -> DlqJob | None:
    """Return the entry; None when there is none, as when its job was requeued and is done."""
    row = await connection.fetchrow(text("get_dlq_job", schema), _checked_id(entry_id))
    return None if row is None else _entry(row)


async def dlq_stats(connection: Connection, schema: str) -> DlqStats:
    """Return the dead letter queue in numbers; reads all of it."""
    row = await connection.fetchrow(text("dlq_stats", schema))
    if row is None:
        raise DatabaseError("the numbers of the dead letter queue did not come")
    fields = dict(row)
    return DlqStats(task_breakdown=dict(zip(fields.pop("tasks"), fields.pop("task_counts"), strict=True)), **fields)


async def requeue_dlq_job(
    connection: Connection,
    schema: str,
    entry_id: int,
    notes: str | None = None,
    *,
    payload: Any = msgspec.UNSET,
    force: bool = False,
) -> Job:
    """Have an entry run again, now, as a new job with its task, queue, priority, key, limit of attempts and flags.

    Args:
        entry_id: The entry's number.
        notes: Replaces the entry's notes; None leaves them.
        payload: Replaces the payload, which is kept in the entry's history; left out, the payload is as it was.
        force: Requeue although another job has the key: one that waits is dropped, one that runs loses its key and is
            not retried. Also requeue an entry that is out as a job that is not there any more, done or removed by
            somebody who knows nothing of the dead letter queue.

    Returns:
        The new job.

    Raises:
        DlqEntryNotFound: There is no such entry, or it is out.
        KeyInUse: A job with the entry's key is queued or running, and ``force`` is not set.
        InvalidJob: The payload has no faithful JSON form, or the notes cannot be stored.
    """
    _checked_id(entry_id)
    if notes is not None:
        notes = _storable("notes", notes)
    edited = None if payload is msgspec.UNSET else encode_payload(payload)
    statement = await requeueing(connection, schema)
    for _ in range(_TRIES):
        await connection.execute(text("create_dlq_names", schema), [entry_id])
        async with connection.transaction():
            if force:
                await _make_room(connection, schema, entry_id)
            row = await connection.fetchrow(statement, [entry_id], edited, notes, force)
            if row is not None:
                made = await connection.fetchrow(text("get_job", schema), row["job_id"])
                if made is not None:
                    return job_of(made)
            await _refuse(connection, schema, entry_id, force=force)
    raise DatabaseError(f"DLQ entry {entry_id} could not be requeued: others come in between each time; try again")


async def requeueing(connection: Connection, schema: str) -> str:
    """The statement that requeues entries in this schema."""
    familiar = await is_familiar(connection, schema)
    return text("requeue_dlq_jobs" if familiar else "requeue_dlq_jobs_by_add_job", schema)


async def delete_dlq_job(connection: Connection, schema: str, entry_id: int) -> bool:
    """Delete the entry, here or out (its job stays); return whether there was one."""
    return bool(await connection.fetchval(text("delete_dlq_jobs", schema), [_checked_id(entry_id)]))


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


async def _make_room(connection: Connection, schema: str, entry_id: int) -> None:
    """Take the entry's key from whatever job has it, its own aside."""
    row = await connection.fetchrow(text("hold_dlq_job", schema), entry_id)
    if row is not None and row["job_key"] and not row["job_is_there"]:
        await connection.execute(text("remove_job", schema), row["job_key"])


async def _refuse(connection: Connection, schema: str, entry_id: int, *, force: bool) -> None:
    """Say why an entry was not requeued; return when nothing is in the way any more."""
    row = await connection.fetchrow(text("hold_dlq_job", schema), entry_id)
    if row is None:
        raise DlqEntryNotFound(entry_id)
    if row["requeued_job_id"] is not None and (row["job_is_there"] or not force):
        raise DlqEntryNotFound(entry_id, row["requeued_job_id"])
    if row["job_key"] and not force:
        holder = await connection.fetchval(text("job_of_key", schema), row["job_key"])
        if holder is not None:
            raise KeyInUse(row["job_key"], holder, entry_id)


def _entry(row: asyncpg.Record) -> DlqJob:
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


def _checked_id(entry_id: int) -> int:
    return checked_int("entry id", entry_id, -(2**63), 2**63 - 1)


def _storable(field: str, value: str) -> str:
    """The text, which may be empty."""
    return checked_text(field, value) if value else ""
