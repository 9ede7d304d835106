# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Moving many entries and jobs at once, page by page, each page a transaction of its own.

An entry is met once, since pages go by id: one that fails again while its successors are requeued is not requeued anew.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import asyncpg

from backfill.client.dlq import chosen_by
from backfill.client.jobs import MOVED_BY
from backfill.db import Connection, is_connection_error
from backfill.errors import InvalidJob
from backfill.model import DlqFilter, checked_int, checked_text
from backfill.sql import text

logger = logging.getLogger(__name__)

_PAGE: Final = 500  # entries
_SCAN_PAGE: Final = 5_000  # jobs
_LOWEST_ID: Final = -(2**63)
_ANY: Final = DlqFilter()


class Requeued(NamedTuple):
    """What ``requeue_dlq_jobs`` did.

    Attributes:
        requeued: How many entries run again.
        skipped: How many stayed because a job with their key is queued or running, or somebody else was faster.
    """

    requeued: int
    skipped: int


async def requeue_dlq_jobs(
    connection: Connection,
    schema: str,
    dlq_filter: DlqFilter,
    *,
    dry_run: bool = False,
    notes: str | None = None,
    limit: int | None = None,
) -> Requeued:
    """Have all entries that a filter means, and that are here, run again.

    Args:
        dlq_filter: Which entries; its ``limit`` and ``offset``, which page lists, must be left alone.
        dry_run: Change nothing; ``requeued`` says how many there are.
        notes: Replaces the entries' notes; None leaves them.
        limit: How many entries at most, those with the lowest ids first; None = all.

    Raises:
        InvalidJob: The filter pages, or a value cannot be.
    """
    if notes:
        checked_text("notes", notes)
    chosen = chosen_by(replace(_whole(dlq_filter), requeued=False))
    if dlq_filter.requeued:
        raise InvalidJob("the filter means entries that are out; these cannot be requeued")
    if dry_run:
        return Requeued(await _count(connection, schema, chosen, limit), 0)
    requeued = skipped = 0
    async for ids in _pages(connection, schema, chosen, limit):
        await connection.execute(text("create_dlq_names", schema), ids)
        pairs = await connection.fetch(text("requeue_dlq_jobs", schema), ids, None, notes, False)  # noqa: FBT003 - a column
        requeued += len(pairs)
        skipped += len(ids) - len(pairs)
    return Requeued(requeued, skipped)


async def delete_dlq_jobs(
    connection: Connection, schema: str, dlq_filter: DlqFilter, *, dry_run: bool = False, limit: int | None = None
) -> int:
    """Delete all entries that a filter means; return how many.

    Entries that are out are only deleted when the filter asks for them (``requeued=True``).

    Args:
        dlq_filter: Which entries; its ``limit`` and ``offset``, which page lists, must be left alone.
        dry_run: Change nothing; the answer is how many there are.
        limit: How many entries at most, those with the lowest ids first; None = all.

    Raises:
        InvalidJob: The filter pages, or a value cannot be.
    """
    out = bool(dlq_filter.requeued)
    chosen = chosen_by(replace(_whole(dlq_filter), requeued=out))
    if dry_run:
        return await _count(connection, schema, chosen, limit)
    deleted = 0
    async for ids in _pages(connection, schema, chosen, limit):
        deleted += await connection.fetchval(text("delete_chosen_dlq_jobs", schema), ids, out)
    return deleted


async def process_failed_jobs(connection: Connection, schema: str, *, moved_by: str = MOVED_BY) -> int:
    """Move all jobs that have used up their attempts, and that nobody runs, to the dead letter queue; return how many.

    A job that the dead letter queue refuses, because of a trigger or a column that somebody added, stays where it is and is
    logged as an error; the others are moved.

    Args:
        moved_by: The entries' ``created_by``.
    """
    moved, after_id, page = 0, _LOWEST_ID, _SCAN_PAGE
    while True:
        try:
            async with connection.transaction():
                row = await connection.fetchrow(text("bury_exhausted_jobs", schema), after_id, page, moved_by)
        except asyncpg.PostgresError as error:
            if is_connection_error(error):
                raise
            if page > 1:  # smaller and smaller pages, up to the one that is refused
                page //= 2
                continue
            after_id, page = await _pass_over(connection, schema, after_id, error), _SCAN_PAGE
            continue
        if row is None or row["last_id"] is None:
            return moved
        moved += row["moved"]
        after_id = row["last_id"]


async def _pass_over(connection: Connection, schema: str, after_id: int, error: asyncpg.PostgresError) -> int:
    """Log that the first job behind an id cannot be moved; return its id."""
    job_id = await connection.fetchval(text("next_job_id", schema), after_id)
    if job_id is None:
        raise error
    logger.error("the dead letter queue refuses job %d, which stays in the queue, used up: %s", job_id, error)
    return int(job_id)


def _whole(dlq_filter: DlqFilter) -> DlqFilter:
    """The filter, if it means all entries that fit."""
    if (dlq_filter.limit, dlq_filter.offset) != (_ANY.limit, _ANY.offset):
        raise InvalidJob(
            "limit and offset of a DlqFilter page a list; to change only some of the entries, give limit= to the call itself",
        )
    return dlq_filter


async def _count(connection: Connection, schema: str, chosen: tuple[Any, ...], limit: int | None) -> int:
    return int(await connection.fetchval(text("count_dlq_jobs", schema), *chosen, _checked_limit(limit)))


async def _pages(
    connection: Connection, schema: str, chosen: tuple[Any, ...], limit: int | None
) -> AsyncIterator[list[int]]:
    """The ids of the chosen entries, a page at a time."""
    left, after_id = _checked_limit(limit), _LOWEST_ID
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        ids = await connection.fetchval(text("dlq_ids", schema), *chosen, after_id, size)
        if not ids:
            return
        yield ids
        after_id = ids[-1]
        left = None if left is None else left - len(ids)


def _checked_limit(limit: int | None) -> int | None:
    return None if limit is None else checked_int("limit", limit, 1, 2**63 - 1)
