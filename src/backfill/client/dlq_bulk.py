# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Moving many entries at once, page by page, each page a transaction of its own.

An entry is met once, since pages go by id: one that fails again while its successors are requeued is not requeued anew.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from backfill.client.dlq import chosen_by, requeueing
from backfill.db import Connection
from backfill.errors import InvalidJob
from backfill.model import DlqFilter, checked_int, checked_text
from backfill.sql import text

_PAGE: Final = 500  # entries
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
    statement = await requeueing(connection, schema)
    requeued = skipped = 0
    async for ids in _pages(connection, schema, chosen, limit):
        await connection.execute(text("create_dlq_names", schema), ids)
        pairs = await connection.fetch(statement, ids, None, notes, False)  # noqa: FBT003 - a column
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
