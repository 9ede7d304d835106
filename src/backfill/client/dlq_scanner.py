# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Finding used-up and overdue jobs that nobody moved to the dead letter queue, and moving them.

A job that fails for good on a worker of ours is in the dead letter queue in the statement that fails it. This scan is for
what other workers (Node, Rust), operators and crashes leave, and for jobs whose deadline passed while no worker came to them. No index leads to such jobs, so a scan walks the queue's primary
key in pages, each a transaction of its own, until its end; the longer one takes, the longer the next one waits. What the
dead letter queue holds already does not matter to it.

It also settles entries that are out as a job which is gone. Whatever of ours ends a requeued job sees to its entry in the
same statement; so such a job was completed by another worker, which knows nothing of the entry, or somebody removed it on
purpose by other means than ours. Both mean that nobody waits for it any more, so the entry is deleted.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from typing import Final, Protocol

import asyncpg

from backfill.client.jobs import MOVED_BY
from backfill.db import DRIVER_ERRORS, Borrowed, Connection, Pool, is_connection_error
from backfill.errors import BackfillError, ConfigurationError
from backfill.hooks import HookRegistry
from backfill.sql import text

logger = logging.getLogger(__name__)

_PAGE: Final = 5_000  # jobs
_LOWEST_ID: Final = -(2**63)
_SHARE: Final = 50  # a scan may take a fiftieth of the time


class Database(Protocol):
    """What a scanner needs of a client."""

    @property
    def pool(self) -> Pool:
        """Connections."""
        ...

    @property
    def schema(self) -> str:
        """The schema's name."""
        ...


class Scanned(Database, Protocol):
    """A client that a scanner runs beside."""

    background: set["asyncio.Task[None]"]

    @property
    def hooks(self) -> HookRegistry:
        """Whose switches say whether entries are settled."""
        ...


async def process_failed_jobs(
    connection: Connection, schema: str, *, moved_by: str = MOVED_BY, stop: asyncio.Event | None = None
) -> int:
    """Move all jobs that nobody runs and that will not run any more to the dead letter queue; return how many.

    They have used up their attempts, or their deadline has passed.

    A job that the dead letter queue refuses, because of a trigger or a column that somebody added, stays where it is and is
    logged as an error; the others are moved.

    Args:
        moved_by: The entries' ``created_by``.
        stop: Set it to have the scan end after the page that is under way.
    """
    return await _scan(connection, schema, moved_by, stop, alone=False)


async def _scan(connection: Connection, schema: str, moved_by: str, stop: asyncio.Event | None, *, alone: bool) -> int:
    """As ``process_failed_jobs``; ``alone``: end at a page during which somebody else does that.

    The lock lasts for a page's transaction, not for the session, which a pooler would share with others.
    """
    moved, after_id, page = 0, _LOWEST_ID, _PAGE
    while stop is None or not stop.is_set():
        try:
            async with connection.transaction():
                if alone and not await connection.fetchval(text("begin_scan", schema), schema):
                    return moved
                row = await connection.fetchrow(text("bury_exhausted_jobs", schema), after_id, page, moved_by)
        except asyncpg.PostgresError as error:
            if is_connection_error(error):
                raise
            if page > 1:  # smaller and smaller pages, up to the one that is refused
                page //= 2
                continue
            after_id, page = await _pass_over(connection, schema, after_id, error), _PAGE
            continue
        if row is None or row["last_id"] is None:
            return moved
        moved += row["moved"]
        after_id = row["last_id"]
    return moved


async def settle_done_elsewhere(connection: Connection, schema: str) -> int:
    """Delete the entries that are out as jobs which are gone, unless somebody else is at it; return how many."""
    settled, after_job_id = 0, _LOWEST_ID
    while True:
        async with connection.transaction():
            if not await connection.fetchval(text("begin_scan", schema), schema):
                return settled
            row = await connection.fetchrow(text("settle_done_elsewhere", schema), after_job_id, _PAGE)
        if row is None or row["last_job_id"] is None:
            return settled
        settled += len(row["settled"])
        for entry_id, task, job_id in zip(row["settled"], row["tasks"], row["job_ids"], strict=True):
            logger.info(
                "dead letter %d (%s) is settled and deleted: job %d, as which it was out, is gone, since another worker"
                " completed it or somebody removed it",
                entry_id,
                task,
                job_id,
            )
        after_job_id = row["last_job_id"]


async def _pass_over(connection: Connection, schema: str, after_id: int, error: asyncpg.PostgresError) -> int:
    """Log that the first job behind an id cannot be moved; return its id."""
    job_id = await connection.fetchval(text("next_job_id", schema), after_id)
    if job_id is None:
        raise error
    logger.error("the dead letter queue refuses job %d, which stays in the queue, used up: %s", job_id, error)
    return int(job_id)


def start_dlq_processor(client: Scanned, interval: timedelta, stop: asyncio.Event) -> "asyncio.Task[None]":
    """Scan for used-up jobs at once and then at the interval, in the background; workers of backfill do so anyway.

    Args:
        interval: Time between scans; the longer a scan takes, the longer the next one waits. Of all processes that scan a
            schema one at a time does.
        stop: Set it to end the scanning, at the next page of a scan that is under way. Closing the client ends it too.

    Raises:
        ConfigurationError: The interval is not above zero, or the client is not open.
    """
    if interval <= timedelta():
        raise ConfigurationError(f"interval must be above zero, not {interval!r}")
    borrow = partial(Borrowed, client.pool, "cannot scan for used-up jobs")
    settle = client.hooks.switches.dlq_cleanup
    scanner = DeadLetterScanner(borrow, client.schema, interval.total_seconds(), settle=settle)
    task = asyncio.create_task(scanner.run(stop), name="dead letters")
    client.background.add(task)
    task.add_done_callback(client.background.discard)
    return task


async def end(running: set["asyncio.Task[None]"]) -> None:
    """End scanners that run, and wait until they have."""
    tasks = list(running)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class DeadLetterScanner:
    """Scans for used-up jobs at an interval. One process at a time scans; the others skip their turn.

    Attributes:
        scanned: Set after the first scan of ``run``, however it ended.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Connection]],
        schema: str,
        interval: float,
        *,
        moved_by: str = MOVED_BY,
        settle: bool = True,
    ) -> None:
        """Prepare it.

        Args:
            connect: Gives a connection for the length of a scan.
            schema: The schema's name.
            interval: Seconds between scans.
            moved_by: For the dead letters' ``created_by``.
            settle: Whether entries go that are out as jobs which are gone (see ``DlqCleanupPlugin``).
        """
        self.scanned = asyncio.Event()
        self._connect = connect
        self._schema = schema
        self._interval = interval
        self._moved_by = moved_by
        self._settle = settle

    async def run_once(self, stop: asyncio.Event | None = None) -> int:
        """Scan once, unless another process does; how many jobs were moved.

        Args:
            stop: Set it to have the scan end after the page that is under way.
        """
        async with self._connect() as connection:
            moved = await _scan(connection, self._schema, self._moved_by, stop, alone=True)
            if self._settle:
                await settle_done_elsewhere(connection, self._schema)
        if moved:
            logger.info("moved %d used-up jobs to the dead letter queue", moved)
        return moved

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Scan at once and then at the interval; until ``stop`` is set, or cancelled."""
        stop = stop or asyncio.Event()
        while not stop.is_set():
            began = time.monotonic()
            try:
                await self.run_once(stop)
            except (*DRIVER_ERRORS, BackfillError) as error:
                logger.warning("cannot scan for used-up jobs now: %s", error)
            self.scanned.set()
            pause = max(self._interval, _SHARE * (time.monotonic() - began))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads a fleet, no secret
                    await stop.wait()
