# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Clearing away what no job needs any more; only ever what is asked for by name.

Rows of tasks and queues are small, and workers and clients find new ones by themselves, so this is seldom urgent. A row that
an open transaction of ours needs is left alone: of tasks in any case, since adding a job holds its task; of queues not, since
holding them would stop the queue. A job whose queue's row is deleted at that very moment is mended by a worker.
"""

from collections.abc import Collection
from enum import StrEnum
from itertools import islice
from typing import Final

from backfill.db import Connection
from backfill.errors import InvalidJob
from backfill.model import checked_identifier
from backfill.sql import text

_PAGE: Final = 10_000  # ids; each page looks at all jobs once


class CleanupTask(StrEnum):
    """What there is to clear away; the values are those of Graphile Worker."""

    DELETE_PERMAFAILED_JOBS = "DELETE_PERMAFAILED_JOBS"
    """Jobs that have used up their attempts. What they were is lost: move them to the dead letter queue instead."""
    GC_TASK_IDENTIFIERS = "GC_TASK_IDENTIFIERS"
    """Rows of tasks that no job belongs to."""
    GC_JOB_QUEUES = "GC_JOB_QUEUES"
    """Rows of queues that no job belongs to."""


async def cleanup(
    connection: Connection,
    schema: str,
    tasks: Collection[CleanupTask | str] = (CleanupTask.GC_JOB_QUEUES,),
    *,
    keep_tasks: Collection[str] = (),
) -> dict[CleanupTask, int]:
    """Clear away what is named, page by page; dead jobs first, then tasks, then queues.

    Args:
        tasks: What to clear away.
        keep_tasks: Identifiers whose rows stay.

    Returns:
        How many rows went, for each of the tasks.

    Raises:
        InvalidJob: There is no such task of cleaning up, or an identifier cannot be one.
    """
    chosen = _checked(tasks)
    keep = [checked_identifier(name) for name in keep_tasks]
    done: dict[CleanupTask, int] = {}
    for task in CleanupTask:
        if task not in chosen:
            continue
        if task is CleanupTask.DELETE_PERMAFAILED_JOBS:
            done[task] = await _delete_dead_jobs(connection, schema)
        elif task is CleanupTask.GC_TASK_IDENTIFIERS:
            unused = await connection.fetchval(text("unused_tasks", schema), keep)
            done[task] = await _delete_unused(connection, schema, unused, "lock_tasks", "delete_tasks")
        else:
            done[task] = await delete_queues(connection, schema, await unused_queues(connection, schema))
    return done


async def unused_queues(connection: Connection, schema: str) -> list[int]:
    """The ids of queues that nobody holds and no job belongs to."""
    found: list[int] = await connection.fetchval(text("unused_queues", schema))
    return found


async def delete_queues(connection: Connection, schema: str, ids: list[int]) -> int:
    """Delete those of the queues that nobody holds and no job belongs to; how many went."""
    return await _delete_unused(connection, schema, ids, "lock_queues", "delete_queues")


async def _delete_dead_jobs(connection: Connection, schema: str) -> int:
    """Delete dead jobs page by page; entries of the dead letter queue that were out as one of them are here again."""
    deleted, last_id = 0, -(2**63)
    while True:
        async with connection.transaction():
            row = await connection.fetchrow(text("delete_dead_jobs", schema), last_id, _PAGE)
            if row is None or row["last_id"] is None:
                return deleted
            if row["requeued"]:
                await connection.execute(text("bring_back", schema), row["requeued"])
        deleted += row["deleted"]
        last_id = row["last_id"]


async def _delete_unused(connection: Connection, schema: str, ids: list[int], lock: str, delete: str) -> int:
    """Delete rows page by page, each locked first and looked at again; see the statements."""
    deleted, left = 0, iter(ids)
    while page := list(islice(left, _PAGE)):
        async with connection.transaction():
            locked = await connection.fetchval(text(lock, schema), page)
            deleted += await connection.fetchval(text(delete, schema), locked)
    return deleted


def _checked(tasks: Collection[CleanupTask | str]) -> set[CleanupTask]:
    if isinstance(tasks, str):
        raise InvalidJob(f"tasks must be a collection, not the str {tasks!r}")
    try:
        return {CleanupTask(task) for task in tasks}
    except ValueError as error:
        raise InvalidJob(f"{error}; write one of {', '.join(CleanupTask)}") from error
