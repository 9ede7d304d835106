"""Telling workers about new jobs without slowing the adds down.

A transaction that notifies takes a lock, shared by the whole server, at its commit: adds that all notify commit one
after another. So a client sends one notification with the first add (the leading edge), and what it adds within the next
few milliseconds is announced by one more (the trailing edge) with the summed count. States:

* **quiet**: nothing sent for ``interval``. The next add carries its own notification, and the client is
* **busy**: adds carry none and are counted here; when the interval is over, the count is sent. With nothing to count it is
  quiet again.

A notification that cannot be sent is only a delay: workers poll as well. Only due jobs are counted, by the database's
clock.
"""

import asyncio
import contextlib
import logging
import random
from typing import Final

from backfill.db import Borrowed, Keeper, Pool
from backfill.errors import BackfillError
from backfill.sql import text

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.005  # seconds; a latency that nobody sees beside a commit, and at most 200 notifications a second

# In a caller's transaction all notifications have one text, and PostgreSQL sends equal ones of a transaction once. How many
# jobs there will be is not known then: enough to wake the idle workers of a usual process. Graphile Worker overstates too.
TRANSACTION_NOTIFICATION: Final = '{"r":0,"count":10}'


def notification(count: int) -> str:
    """The text that says that there are that many new jobs, as Graphile Worker writes it.

    ``r`` is random, so that PostgreSQL takes no two of a transaction for one.
    """
    return f'{{"r":{random.random()},"count":{count}}}'  # noqa: S311 - no secret


class Notifier:
    """The notifications of one client; see the module's docstring.

    Args:
        pool: Where the trailing ones are sent from.
        keeper: What keeps a connection of it between adds.
        schema: The schema's name.
        interval: Seconds between two.
    """

    def __init__(self, pool: Pool, schema: str, *, keeper: Keeper, interval: float = INTERVAL) -> None:
        self._pool = pool
        self._keeper = keeper
        self._schema = schema
        self._interval = interval
        self._quiet_from = 0.0
        self._count = 0
        self._trailing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def leading(self) -> str | None:
        """The notification that the add about to be sent is to carry; None when it is to be counted instead."""
        now = asyncio.get_running_loop().time()
        if now < self._quiet_from or self._trailing is not None:
            return None
        self._quiet_from = now + self._interval
        return notification(1)

    def count(self, jobs: int = 1) -> None:
        """Have jobs announced that were added without a notification and are due."""
        self._count += jobs
        if self._trailing is None:
            self._trailing = asyncio.create_task(self._trail(), name="backfill-notify")

    async def close(self) -> None:
        """Send what is still to be announced, and return when it has been."""
        self._closing.set()
        if self._trailing is not None:
            await asyncio.wait([self._trailing])

    async def _trail(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._count:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), max(self._quiet_from - loop.time(), 0))
                count, self._count = self._count, 0
                self._quiet_from = loop.time() + self._interval
                await self._send(count)
        finally:
            self._trailing = None

    async def _send(self, count: int) -> None:
        try:
            async with Borrowed(self._pool, "cannot notify", keeper=self._keeper) as connection:
                await connection.execute(text("notify_jobs", self._schema), notification(count))
        except BackfillError as error:
            logger.warning("%d new jobs could not be announced; workers find them by polling: %s", count, error)
