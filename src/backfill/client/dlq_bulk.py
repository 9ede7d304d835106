# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Requeueing and deleting many entries at once, page by page, each page a transaction of its own.

The pages go by id, up to the highest id that was chosen when it began. So an entry is met once, however many fail again or
come in meanwhile, and memory and the time for a page stay the same. Whatever ends it early, what is done is done and told,
and the same call again goes on: entries that have been requeued are out, and are not chosen any more.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from backfill.client.dlq import LOWEST_ID, checked_id, chosen_by, fetch_in_order, whole
from backfill.client.dlq_requeue import PageRequeuer, requeueing
from backfill.db import Connection
from backfill.errors import InvalidJob
from backfill.model import DlqEdit, DlqFilter, DlqProgress, checked_int, checked_notes, checked_positive
from backfill.sql import text

_PAGE: Final = 500  # entries

Watch: TypeAlias = Callable[[DlqProgress], object]
"""What is told of the progress after each page."""


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
    edit: DlqEdit | None = None,
    force: bool = False,
    limit: int | None = None,
    after: int | None = None,
    rate: float | None = None,
    watch: Watch | None = None,
    stop: asyncio.Event | None = None,
) -> Requeued:
    """Have all entries that a filter means, and that are here, run again.

    Each is requeued once at most, also when it fails again meanwhile. Entries whose key a job has are skipped.

    Args:
        dlq_filter: Which entries; its ``limit`` and ``offset``, which page lists, must be left alone.
        dry_run: Change nothing; the answer says how many would be requeued, and skipped for their key.
        notes: Replaces the entries' notes; None leaves them.
        edit: Changes the entries that are requeued; what it replaces is kept in their history.
        force: Requeue also where another job has the key: one that waits is dropped, one that runs loses its key and is
            not retried.
        limit: How many entries at most, those with the lowest ids first; None = all.
        after: Only entries with a greater id.
        rate: How many entries a second at most; None = as many as the database takes.
        watch: Called after each page with a ``DlqProgress``.
        stop: Set it to end after the page that is under way.

    Raises:
        InvalidJob: The filter pages, or a value cannot be.
    """
    checked_notes(notes)
    if dlq_filter.requeued:
        raise InvalidJob("the filter means entries that are out; these cannot be requeued")
    walk = _Walk(connection, schema, replace(whole(dlq_filter), requeued=False), limit, after, rate, watch, stop)
    await walk.measure(with_keys=dry_run and not force)
    if dry_run:
        return Requeued(walk.total - walk.keys_in_use, walk.keys_in_use)
    requeuer = PageRequeuer(connection, schema, await requeueing(connection, schema), notes, edit, force)
    async for ids in walk.pages():
        walk.count(ids, await requeuer.requeue(ids))
    return Requeued(walk.done, walk.skipped)


async def delete_dlq_jobs(
    connection: Connection,
    schema: str,
    dlq_filter: DlqFilter,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    after: int | None = None,
    rate: float | None = None,
    watch: Watch | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Delete all entries that a filter means; return how many.

    Entries that are out are only deleted when the filter asks for them (``requeued=True``).

    Args:
        dlq_filter: Which entries; its ``limit`` and ``offset``, which page lists, must be left alone.
        dry_run: Change nothing; the answer is how many there are.
        limit: How many entries at most, those with the lowest ids first; None = all.
        after: Only entries with a greater id.
        rate: How many entries a second at most; None = as many as the database takes.
        watch: Called after each page with a ``DlqProgress``.
        stop: Set it to end after the page that is under way.

    Raises:
        InvalidJob: The filter pages, or a value cannot be.
    """
    out = bool(dlq_filter.requeued)
    walk = _Walk(connection, schema, replace(whole(dlq_filter), requeued=out), limit, after, rate, watch, stop)
    await walk.measure(with_keys=False)
    if dry_run:
        return walk.total
    async for ids in walk.pages():
        walk.count(ids, set(await connection.fetchval(text("delete_chosen_dlq_jobs", schema), *walk.chosen, ids)))
    return walk.done


async def prune_dlq_jobs(
    connection: Connection,
    schema: str,
    older_than: timedelta,
    dlq_filter: DlqFilter | None = None,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    after: int | None = None,
    rate: float | None = None,
    watch: Watch | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Delete the entries that failed longer ago than that, by the database's clock; return how many.

    Entries that are out stay.

    Args:
        older_than: The age of an entry is the time since it last failed.
        dlq_filter: Which of them; None = all. Its ``failed_before`` and ``requeued`` must be left alone.
        dry_run: Change nothing; the answer is how many there are.
        limit: How many entries at most, those with the lowest ids first; None = all.
        after: Only entries with a greater id.
        rate: How many entries a second at most; None = as many as the database takes.
        watch: Called after each page with a ``DlqProgress``.
        stop: Set it to end after the page that is under way.

    Raises:
        InvalidJob: The age is not above zero, or the filter says itself how old entries are, or asks for those that are out.
    """
    chosen = dlq_filter or DlqFilter()
    if chosen.failed_before is not None or chosen.requeued:
        raise InvalidJob(
            "prune goes by older_than and leaves entries that are out: set neither failed_before nor requeued"
        )
    now = await connection.fetchval(text("database_time", schema))
    try:
        chosen = replace(chosen, failed_before=now - checked_positive("older_than", older_than))
    except OverflowError as error:
        raise InvalidJob(f"older_than {older_than} is longer than any date is ago") from error
    return await delete_dlq_jobs(
        connection, schema, chosen, dry_run=dry_run, limit=limit, after=after, rate=rate, watch=watch, stop=stop
    )


@dataclass(slots=True)
class _Walk:
    """A walk over the chosen entries, and the counting on the way."""

    connection: Connection
    schema: str
    dlq_filter: DlqFilter
    limit: int | None
    after: int | None
    rate: float | None
    watch: Watch | None
    stop: asyncio.Event | None
    total: int = 0
    last_id: int = LOWEST_ID
    keys_in_use: int = 0
    done: int = 0
    skipped: int = 0
    chosen: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.chosen = chosen_by(self.dlq_filter)
        if self.limit is not None:
            checked_int("limit", self.limit, 1, 2**63 - 1)
        if self.after is not None:
            checked_id(self.after)
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise InvalidJob(f"rate must be above zero, in entries a second, not {self.rate!r}")

    async def measure(self, *, with_keys: bool) -> None:
        """Find out how many entries are chosen, and up to which id: those that come later are not."""
        args = (*self.chosen, self._after, self.limit, with_keys)
        (row,) = await fetch_in_order(self.connection, self.schema, "dlq_span", *args)
        if row["last_id"] is not None:
            self.total, self.last_id, self.keys_in_use = row

    async def pages(self) -> AsyncIterator[list[int]]:
        """The ids of the chosen entries, a page at a time, not faster than asked."""
        began, after_id, given = time.monotonic(), self._after, 0
        size = _PAGE if self.rate is None else max(1, min(_PAGE, int(self.rate)))
        while not self._stopped:
            args = (*self.chosen, after_id, self.last_id, size)
            rows = await fetch_in_order(self.connection, self.schema, "dlq_ids", *args)
            if not rows:
                return
            ids = [row["id"] for row in rows]
            yield ids
            after_id, given = ids[-1], given + len(ids)
            if self.rate is not None:
                await self._until(began + given / self.rate)

    def count(self, ids: list[int], done: set[int]) -> None:
        """Count a page of which these entries are done."""
        self.done += len(done)
        self.skipped += len(ids) - len(done)
        if self.watch is not None:
            left = tuple(entry_id for entry_id in ids if entry_id not in done)
            self.watch(
                DlqProgress(done=self.done, skipped=self.skipped, total=self.total, last_id=ids[-1], skipped_ids=left)
            )

    @property
    def _after(self) -> int:
        return LOWEST_ID if self.after is None else self.after

    @property
    def _stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    async def _until(self, moment: float) -> None:
        """Wait until the monotonic clock says so, or until it is to stop."""
        stop = self.stop or asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(moment - time.monotonic()):
                await stop.wait()
