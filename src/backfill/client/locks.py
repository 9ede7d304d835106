# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Locks that nobody will take away: those of Node and Rust workers that died, and rows of queues that are gone.

What a worker of ours holds is freed within seconds of its death by any other worker, and is never touched here, however old it
is. Of other workers nothing is known but their locks. So only the age of a lock speaks, and it has to be an age that no live
job has: over four hours, as in Graphile Worker itself. A shorter time frees, and runs twice, what simply takes longer.

A scan walks the jobs' primary key in pages, each a transaction; one process at a time does, and the longer one takes, the longer the
next one waits.
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
from typing import Final, NamedTuple

from backfill.client.cleanup import CleanupTask, cleanup
from backfill.client.dlq_scanner import Scanned, process_failed_jobs
from backfill.db import DRIVER_ERRORS, Borrowed, Connection
from backfill.errors import BackfillError, ConfigurationError, InvalidJob
from backfill.sql import text

logger = logging.getLogger(__name__)

STALE: Final = timedelta(hours=4)
_PAGE: Final = 5_000  # jobs
_LOWEST_ID: Final = -(2**63)
_SHARE: Final = 50  # a scan may take a fiftieth of the time
_UPKEEP: Final = "stale lock scan"


class StartupCleanup(NamedTuple):
    """What ``startup_cleanup`` did.

    Attributes:
        dead_letters: Used-up jobs that went to the dead letter queue.
        job_locks: Jobs that were freed.
        queue_locks: Serial queues that were freed.
    """

    dead_letters: int
    job_locks: int
    queue_locks: int


async def release_stale_job_locks(connection: Connection, schema: str, timeout: timedelta | None = None) -> int:  # noqa: ASYNC109 - an age, by the contract's name
    """Free jobs that workers of Node or Rust have locked for long; return how many. They run again, attempts as they are.

    Jobs of a live worker of backfill are never among them.

    Args:
        timeout: How old a lock must be; None = over four hours. A job that runs for longer than this runs twice.

    Raises:
        InvalidJob: The timeout is not above zero.
    """
    return (await _look_over(connection, schema, checked_age(timeout), alone=False))[0]


async def release_stale_queue_locks(connection: Connection, schema: str, timeout: timedelta | None = None) -> int:  # noqa: ASYNC109 - an age, by the contract's name
    """Free serial queues that workers of Node or Rust have locked for long; return how many.

    A queue of which a job is locked by the same worker stays: it holds the queue for as long as the job runs.

    Args:
        timeout: How old a lock must be; None = over four hours.

    Raises:
        InvalidJob: The timeout is not above zero.
    """
    return int(await connection.fetchval(text("release_stale_queues", schema), checked_age(timeout)))


async def cleanup_permanently_failed_jobs(connection: Connection, schema: str) -> int:
    """Delete all jobs that have used up their attempts; return how many. What they were is lost.

    To keep them, move them to the dead letter queue: ``process_failed_jobs``.
    """
    done = await cleanup(connection, schema, (CleanupTask.DELETE_PERMAFAILED_JOBS,))
    return done[CleanupTask.DELETE_PERMAFAILED_JOBS]


async def startup_cleanup(
    connection: Connection,
    schema: str,
    *,
    queue_timeout: timedelta | None = None,
    job_timeout: timedelta | None = None,
    bury: bool = True,
) -> StartupCleanup:
    """Do what a worker does when it starts: used-up jobs go to the dead letter queue, then stale locks are freed.

    Nothing is deleted.

    Args:
        queue_timeout: As for ``release_stale_queue_locks``.
        job_timeout: As for ``release_stale_job_locks``.
        bury: Whether to move used-up jobs; False leaves them in the queue.

    Raises:
        InvalidJob: A timeout is not above zero.
    """
    for timeout in (queue_timeout, job_timeout):
        checked_age(timeout)
    return StartupCleanup(
        await process_failed_jobs(connection, schema) if bury else 0,
        await release_stale_job_locks(connection, schema, job_timeout),
        await release_stale_queue_locks(connection, schema, queue_timeout),
    )


def start_stale_lock_cleanup(
    client: Scanned,
    interval: timedelta,
    stop: asyncio.Event,
    *,
    queue_timeout: timedelta | None = None,
    job_timeout: timedelta | None = None,
) -> "asyncio.Task[None]":
    """Free stale locks at once and then at the interval, in the background; workers of backfill do so anyway.

    Args:
        interval: Time between scans; the longer a scan takes, the longer the next one waits. Of all processes that scan a
            schema one at a time does.
        stop: Set it to end the scanning. Closing the client ends it too.
        queue_timeout: As for ``release_stale_queue_locks``.
        job_timeout: As for ``release_stale_job_locks``.

    Raises:
        ConfigurationError: The interval is not above zero, or the client is not open.
        InvalidJob: A timeout is not above zero.
    """
    if interval <= timedelta():
        raise ConfigurationError(f"interval must be above zero, not {interval!r}")
    cleaner = StaleLockCleaner(
        partial(Borrowed, client.pool, "cannot free stale locks"),
        client.schema,
        interval.total_seconds(),
        queue_timeout=queue_timeout,
        job_timeout=job_timeout,
    )
    task = asyncio.create_task(cleaner.run(stop), name="stale locks")
    client.background.add(task)
    task.add_done_callback(client.background.discard)
    return task


def checked_age(timeout: timedelta | None) -> float:
    """The age of a stale lock in seconds.

    Raises:
        InvalidJob: It is not above zero.
    """
    if timeout is None:
        return STALE.total_seconds()
    if timeout <= timedelta():
        raise InvalidJob(f"the timeout of a lock must be a timedelta above zero, not {timeout!r}")
    return timeout.total_seconds()


async def _look_over(connection: Connection, schema: str, age: float, *, alone: bool) -> tuple[int, int]:
    """Look over all jobs page by page: free stale locks, heal queues. How many were freed, how many locks of ours are orphans.

    Args:
        connection: In no transaction, unless it is to hold all of it.
        schema: The schema.
        age: Of a stale lock, in seconds.
        alone: End at a page during which somebody else does that.
    """
    released = orphans = 0
    after_id = _LOWEST_ID
    while True:
        async with connection.transaction():
            if alone and not await connection.fetchval(text("begin_upkeep", schema), _UPKEEP, schema):
                return released, orphans
            row = await connection.fetchrow(text("release_stale_jobs", schema), after_id, _PAGE, age)
            if row is None or row["last_id"] is None:
                return released, orphans
            healed = await connection.fetchval(text("heal_queues", schema), after_id, row["last_id"])
        if healed:
            logger.warning(
                "%d serial queues were deleted while jobs were being added to them; they are back, as backfill:lost:ID",
                healed,
            )
        released += row["released"]
        orphans += row["orphans"]
        after_id = row["last_id"]


class StaleLockCleaner:
    """Frees stale locks at an interval. One process at a time does; the others skip their turn."""

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Connection]],
        schema: str,
        interval: float,
        *,
        queue_timeout: timedelta | None = None,
        job_timeout: timedelta | None = None,
        on_orphans: Callable[[], None] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            connect: Gives a connection for the length of a scan.
            schema: The schema's name.
            interval: Seconds between scans.
            queue_timeout: The age of a stale lock of a queue; None = over four hours.
            job_timeout: The age of a stale lock of a job; None = over four hours.
            on_orphans: Called when there are locks of ours whose worker has no row.

        Raises:
            InvalidJob: A timeout is not above zero.
        """
        self._connect = connect
        self._schema = schema
        self._interval = interval
        self._queue_age = checked_age(queue_timeout)
        self._job_age = checked_age(job_timeout)
        self._on_orphans = on_orphans

    async def run_once(self) -> tuple[int, int]:
        """Scan once, unless another process does: how many jobs and how many queues were freed."""
        async with self._connect() as connection:
            jobs, orphans = await _look_over(connection, self._schema, self._job_age, alone=True)
            queues = int(await connection.fetchval(text("release_stale_queues", self._schema), self._queue_age))
        if jobs or queues:
            logger.warning("freed locks that are older than any job may take: %d jobs, %d queues", jobs, queues)
        if orphans and self._on_orphans is not None:
            self._on_orphans()
        return jobs, queues

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Scan at once and then at the interval; until ``stop`` is set, or cancelled."""
        stop = stop or asyncio.Event()
        while not stop.is_set():
            began = time.monotonic()
            try:
                await self.run_once()
            except (*DRIVER_ERRORS, BackfillError) as error:
                logger.warning("cannot look for stale locks now: %s", error)
            pause = max(self._interval, _SHARE * (time.monotonic() - began))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads a fleet, no secret
                    await stop.wait()
