"""What a worker does besides running jobs: moving used-up jobs that nobody moved to the dead letter queue.

A job that fails for good on a worker of ours is in the dead letter queue in the statement that fails it. This scan is for
what other workers (Node, Rust), operators and crashes leave. No index leads to such jobs, so a scan walks the primary
key; the longer one takes, the longer the next one waits.
"""

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final

import msgspec

from backfill.client.dlq_bulk import process_failed_jobs
from backfill.db import DRIVER_ERRORS
from backfill.errors import BackfillError
from backfill.sql import text

if TYPE_CHECKING:
    from backfill.client import BackfillClient

logger = logging.getLogger(__name__)

_SHARE: Final = 50  # a scan may take a fiftieth of the time


class DeadLetterScanner:
    """Scans for used-up jobs at an interval. One process at a time scans; the others skip their turn."""

    def __init__(self, client: "BackfillClient", interval: float, *, moved_by: str) -> None:
        """Prepare it.

        Args:
            client: Its pool is used.
            interval: Seconds between scans.
            moved_by: For the dead letters' ``created_by``.
        """
        self._client = client
        self._interval = interval
        self._moved_by = moved_by

    async def run_once(self) -> int:
        """Scan once, unless another process does; how many jobs were moved."""
        schema = self._client.schema
        async with self._client.pool.acquire() as connection:
            if not await connection.fetchval(text("begin_scan", schema), schema):
                return 0
            try:
                moved = await process_failed_jobs(connection, schema, moved_by=self._moved_by)
            finally:
                await connection.fetchval(text("end_scan", schema), schema)
        if moved:
            logger.info("moved %d used-up jobs to the dead letter queue", moved)
        return moved

    async def run(self) -> None:
        """Scan at once and then at the interval; until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.run_once()
            except (*DRIVER_ERRORS, BackfillError) as error:
                logger.warning("cannot scan for used-up jobs now: %s", error)
            pause = max(self._interval, _SHARE * (time.monotonic() - began))
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - spreads a fleet, no secret


def notified_count(payload: str) -> int:
    """How many jobs a notification on ``jobs:insert`` speaks of; what can't be read counts as one, as in Graphile Worker."""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return 1
    count = value.get("count", 1) if isinstance(value, dict) else 1
    return count if isinstance(count, int) else 1
