"""Cancelling jobs that run, because somebody asked for it (``client.cancel_jobs``).

The wish is in the database before anybody is told of it, so it outlives every process. A notification has all workers beat at
once, and each beat brings back which of the worker's jobs are to be cancelled; without the notification that takes a sixth of
the lease. What happens to a job then:

* its handler is cancelled. It ends so, or fails: the release finds the wish and ends the job as it says. It ends well all the
  same: the job is done.
* its handler can't be cancelled (a thread): it may look at ``ctx.cancel_requested``. Else the job ends when it ends.
* its worker dies, or hands the job back: whoever sweeps, or sees it at the next beat, ends the job.
* its worker is not one of ours: it hears nothing. When it lets go of the job, a worker of ours ends it.
"""

import asyncio
import logging
from collections.abc import Sequence

from backfill.db import DRIVER_ERRORS
from backfill.errors import BackfillError
from backfill.sql import text
from backfill.worker.slot import Slot
from backfill.worker.sweep import Upkeep

logger = logging.getLogger(__name__)


class Canceller:
    """Cancels what a worker runs, and what nobody runs any more."""

    def __init__(self, slots: Sequence[Slot], upkeep: Upkeep, schema: str, *, moved_by: str, bury: bool) -> None:
        """Prepare it.

        Args:
            slots: Where jobs run.
            upkeep: Gives a connection for a while.
            schema: The schema.
            moved_by: For the dead letters' ``created_by``.
            bury: Whether there is a dead letter queue.
        """
        self._slots = slots
        self._upkeep = upkeep
        self._schema = schema
        self._moved_by = moved_by
        self._bury = bury
        self._settling: asyncio.Task[None] | None = None

    def on_cancellations(self, ids: frozenset[int], unsettled: bool) -> None:
        """Take note of what a beat brought back.

        Args:
            ids: Jobs of this worker that are to be cancelled.
            unsettled: Whether there are jobs to be cancelled that nobody holds.
        """
        for slot in self._slots:
            job = slot.current
            if job is not None and job.id in ids and not job.cancel_requested:
                logger.info("job %d (%s) is cancelled: somebody asked for it", job.id, job.handler.identifier)
                slot.cancel("cancelled")
        if unsettled and (self._settling is None or self._settling.done()):
            self._settling = asyncio.create_task(self._settle(), name="cancel")

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._settling is not None:
            await self._settling

    async def _settle(self) -> None:
        try:
            async with self._upkeep() as connection:
                await connection.fetchval(text("settle_cancellations", self._schema), self._moved_by, self._bury)
        except (*DRIVER_ERRORS, BackfillError) as error:
            logger.warning("cannot end cancelled jobs now: %s", str(error) or type(error).__name__)
