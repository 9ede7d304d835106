"""What a worker does for the whole queue beside running jobs, each at its interval and by one process at a time.

* used-up jobs that others left go to the dead letter queue: first of all, before anything is cleared away;
* old locks of Node and Rust workers are freed, and queues healed whose rows are gone: see ``client.locks``;
* rows of serial queues that no job belongs to are deleted, once they were seen unused on two passes: a queue per customer or
  per order would make as many rows as there ever were.

Rows of tasks are left: there are as many as there are tasks, and a Node worker does not notice when one it knows is replaced.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from backfill.client.cleanup import delete_queues, unused_queues
from backfill.client.dlq_scanner import DeadLetterScanner
from backfill.client.locks import StaleLockCleaner
from backfill.db import DRIVER_ERRORS, Connection, Session
from backfill.errors import BackfillError
from backfill.sql import text
from backfill.worker.config import WorkerConfig

logger = logging.getLogger(__name__)

_COLLECT: Final = 600.0  # seconds between looks for unused queues
_SHARE: Final = 50  # a look may take a fiftieth of the time

Connect = Callable[[], AbstractAsyncContextManager[Session]]


class QueueCollector:
    """Deletes rows of serial queues that stay unused."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Connection]], schema: str) -> None:
        """Prepare it.

        Args:
            connect: Gives a connection for the length of a pass.
            schema: The schema's name.
        """
        self._connect = connect
        self._schema = schema
        self._seen: set[int] = set()

    async def run_once(self) -> int:
        """Delete what is unused now and was on the last pass, unless another process does; how many rows went."""
        async with self._connect() as connection:
            async with connection.transaction():
                if not await connection.fetchval(text("begin_upkeep", self._schema), "queue collection", self._schema):
                    return 0
                unused = await unused_queues(connection, self._schema)
            before, self._seen = self._seen, set(unused)
            twice = sorted(before & self._seen)
            return await delete_queues(connection, self._schema, twice) if twice else 0

    async def run(self) -> None:
        """Make a pass at each interval; until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.run_once()
            except (*DRIVER_ERRORS, BackfillError) as error:
                logger.warning("cannot look for unused queues now: %s", error)
            pause = max(_COLLECT, _SHARE * (time.monotonic() - began))
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - spreads a fleet, no secret


class Upkeep:
    """All of it for one worker."""

    def __init__(
        self,
        connect: Connect,
        config: WorkerConfig,
        *,
        worker_id: str,
        settle: bool,
        on_orphans: Callable[[], None],
    ) -> None:
        """Prepare it; ``run`` is its life.

        Args:
            connect: Gives a connection for a while.
            config: The worker's configuration.
            worker_id: For the dead letters' ``created_by``.
            settle: Whether dead letters go that are out as jobs which are gone.
            on_orphans: Called when there are locks of ours whose worker has no row.
        """
        schema, buries, frees = config.schema, config.dlq_processor_interval, config.stale_lock_cleanup_interval
        self.scanner = (
            None
            if buries is None
            else DeadLetterScanner(connect, schema, buries.total_seconds(), moved_by=worker_id, settle=settle)
        )
        self.cleaner = (
            None
            if frees is None
            else StaleLockCleaner(
                connect,
                schema,
                frees.total_seconds(),
                queue_timeout=config.stale_queue_lock_timeout,
                job_timeout=config.stale_job_lock_timeout,
                on_orphans=on_orphans,
            )
        )
        self.collector = QueueCollector(connect, schema)

    async def run(self) -> None:
        """Keep the queue in order; until cancelled."""
        loops: list[Awaitable[None]] = [self._after_scan(self.collector.run)]
        if self.scanner is not None:
            loops.append(self.scanner.run())
        if self.cleaner is not None:
            loops.append(self._after_scan(self.cleaner.run))
        await asyncio.gather(*loops)

    async def _after_scan(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run something that clears away, once used-up jobs have been looked for."""
        if self.scanner is not None:
            await self.scanner.scanned.wait()
        await run()
