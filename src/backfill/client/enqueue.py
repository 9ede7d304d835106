"""Adding one job.

It is one INSERT that finds task and queue by name; with a key one that replaces a job that waits. When the key's job is
not to be replaced, or is running or dead, it is Graphile Worker's ``add_job``. What can happen:

* *No row, no key*: the task or the queue has no row yet, or not any more (unused rows are collected). They are created,
  outside of the caller's transaction where that is possible (two open transactions that create the same two names in
  different orders would wait for each other), and the INSERT is sent again. In a transaction of the isolation level
  REPEATABLE READ or SERIALIZABLE the new rows stay out of sight; creating them once more inside of it then fails with a
  serialization failure, which such transactions are prepared to be run again for.
* *No row, with a key*: the key's job is running or dead, or a name has no row. ``add_job`` sees to either.
* *No row of add_job*: a worker claimed the key's job between its two steps. Sent again, it detaches the running job from
  the key and adds a successor; the payload is never lost.
* *A locked row from unsafe_dedupe*: the key's job is running, nothing was added: AlreadyInProgress.
"""

from typing import Any, Final, NamedTuple

import asyncpg

from backfill.client.rows import Kind, TaskName, job_of, kind_of, payload_text
from backfill.db import Connection
from backfill.errors import DatabaseError
from backfill.model import AlreadyInProgress, Enqueued, EnqueueOutcome, JobKeyMode, JobSpec
from backfill.sql import text

# Each of these tries lost a race that lasts less than a millisecond.
MOST_TRIES: Final = 20

# How an add_job may end instead of giving no row: PostgreSQL ends it (40P01: upstream's add_jobs locks rows in no order of
# its own, and can wait for another's), names are collected while it runs (40001: ours), the race is lost (the Rust port's).
_LOST_RACES: Final = frozenset({"40P01", "40001", "GWNOR"})


class Query(NamedTuple):
    """A statement with its arguments, for whatever driver sends it.

    Attributes:
        sql: The text, with ``$1`` … as placeholders.
        args: The values, in order.
    """

    sql: str
    args: tuple[Any, ...]


def build_enqueue(
    schema: str,
    task: TaskName,
    payload: Any,
    spec: JobSpec | None = None,
    *,
    notification: str | None = None,
) -> Query:
    """The statement that adds a job; sends nothing.

    Args:
        schema: The schema's name, unquoted.
        task: The task, or its identifier.
        payload: Any JSON value; ``msgspec.UNSET`` is ``{}``.
        spec: When and how it runs; the task's settings stand in for what it leaves out.
        notification: The text for ``jobs:insert`` if the job is due at once; None = tell nobody. A keyed job is
            announced by ``add_job`` itself.

    Returns:
        ``insert_job`` for a job without a key, which gives no row when the task's or the queue's is missing;
        ``add_job`` for one with a key, which gives no row when a claim came in between.

    Raises:
        InvalidJob: Something in it cannot be; the message says what.
        ConfigurationError: The TaskHandler class is not complete.
    """
    kind = kind_of(task, spec)
    return build(schema, kind, payload_text(payload, kind), notification)


def build(schema: str, kind: Kind, payload: str, notification: str | None, *, waits: bool = True) -> Query:
    """``build_enqueue`` for a job that has been checked. Without ``waits`` it may come off without the notification."""
    if kind.key is None:
        columns = (kind.task, payload, kind.queue, kind.priority, kind.run_at, kind.max_attempts)
        return Query(text("insert_job", schema), (*columns, kind.flags_json, notification, waits))
    return _by_add_job(schema, kind, payload)


def build_insert(schema: str, kind: Kind, payload: str, notification: str | None, *, waits: bool) -> Query:
    """The INSERT of a job that has no key, or one whose job it may replace."""
    if kind.key is None:
        return build(schema, kind, payload, notification, waits=waits)
    columns = (kind.task, payload, kind.queue, kind.priority, kind.run_at, kind.max_attempts, kind.flags_json)
    preserve = kind.mode is JobKeyMode.PRESERVE_RUN_AT
    return Query(text("add_keyed_job", schema), (*columns, notification, waits, kind.key, preserve))


def _by_add_job(schema: str, kind: Kind, payload: str) -> Query:
    columns = (kind.task, payload, kind.queue, kind.priority, kind.run_at, kind.max_attempts)
    return Query(text("add_job", schema), (*columns, kind.stored_flags, kind.key, kind.mode.value))


def inserted(kind: Kind, payload: str, row: asyncpg.Record) -> Enqueued:
    """The outcome of ``insert_job`` or ``add_keyed_job``."""
    if kind.key is None:
        return Enqueued(kind.job(row["id"], payload, row["created_at"]))
    return Enqueued(kind.keyed_job(row[:7], payload))


def added(kind: Kind, payload: str, row: asyncpg.Record) -> EnqueueOutcome:
    """The outcome of ``add_job`` and its like: what came back locked was running, and is the old job."""
    if kind.mode is JobKeyMode.UNSAFE_DEDUPE and row["locked_at"] is not None:
        return AlreadyInProgress(row["key"])
    return Enqueued(job_of(row, payload))


async def add_by_function(connection: Connection, schema: str, kind: Kind, payload: str) -> EnqueueOutcome:
    """Add a job by ``add_job``, however often claims of its key's job come in between; it may do without a key."""
    sql, args = _by_add_job(schema, kind, payload)
    for _ in range(MOST_TRIES):
        try:
            row = await connection.fetchrow(sql, *args)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in _LOST_RACES or connection.is_in_transaction():
                raise
            row = None
        if row is not None:
            return added(kind, payload, row)
    raise lost_races(kind.key)


def lost_races(key: str | None) -> DatabaseError:
    """The error for a key whose job was claimed anew each time."""
    return DatabaseError(
        f"the job with key {key!r} was claimed anew at each of {MOST_TRIES} tries to add its successor; nothing was added,"
        " so enqueue it again",
    )


def names_missing(kinds: list[Kind]) -> DatabaseError:
    """The error for names that vanish each time they have been created."""
    names = ", ".join(sorted({repr(kind.task) for kind in kinds}))
    return DatabaseError(
        f"the rows of task {names}, or of its queue, vanish as often as they are created, so nothing was added: find out what"
        " empties the tables _private_tasks and _private_job_queues",
    )
