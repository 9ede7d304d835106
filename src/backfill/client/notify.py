"""Telling workers about new jobs without slowing the adds down.

A transaction that notifies takes a lock, shared by the whole server, at its commit: adds that all notify commit one
after another. So a client sends one notification with the first add (the leading edge), and what it adds within the next
few milliseconds is announced by one more with the summed count. While adds keep coming, that one goes with an add too,
which costs next to nothing; else it is sent by itself (the trailing edge). States:

* **quiet**: nothing sent for ``interval``. The next add carries its own notification, and the client is
* **busy**: adds carry none and are counted here. When ``interval`` is nearly over, the next add carries the count; when it
  is over, what has not been carried is sent. With nothing to count it is quiet again.

Many clients at once would still wait for each other. So an add carries its notification only if no other transaction of a client
is committing one just then: who is told by that one looks for jobs, and what the add left out goes with the next. Only the
trailing edge, and adds in callers' transactions, wait.

What an add carries comes back here if the add fails. It may also have to wait, for a transaction that holds its key, say: while
one that carries others is under way, no other add does, and when it has taken too long what it carries is sent by itself, too.

A notification that cannot be sent is only a delay: workers poll as well. Only due jobs are counted, by the database's
clock.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Final

from backfill.db import Borrowed, Keeper, Pool
from backfill.errors import BackfillError
from backfill.sql import text

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.005  # seconds; a latency that nobody sees beside a commit, and at most 250 notifications a second
_EARLY: Final = 0.2  # the part of the interval before its end in which an add carries what is to be announced then
_PATIENCE: Final = 0.05  # seconds that what an add carries may be under way

# In a caller's transaction all notifications have one text, and PostgreSQL sends equal ones of a transaction once. How many
# jobs there will be is not known then: enough to wake the idle workers of a usual process. Graphile Worker overstates too.
TRANSACTION_NOTIFICATION: Final = '{"r":0,"count":10}'


def notification(count: int) -> str:
    """The text that says that there are that many new jobs, as Graphile Worker writes it.

    ``r`` is random, so that PostgreSQL takes no two of a transaction for one.
    """
    return f'{{"r":{random.random()},"count":{count}}}'  # noqa: S311 - no secret


@dataclass(slots=True, eq=False)
class Carried:
    """A notification that an add carries.

    Attributes:
        text: What to send.
        others: How many jobs it tells of besides the one that carries it, and nothing else has told of.
        until: By the loop's clock, when they are told of by something else.
    """

    text: str
    others: int
    until: float


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
        self._patience = _PATIENCE
        self._quiet_from = 0.0
        self._count = 0
        self._carrying: Carried | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    def leading(self) -> Carried | None:
        """What the add about to be sent is to carry; None when it is to be counted instead."""
        now = asyncio.get_running_loop().time()
        if now < self._quiet_from - self._interval * _EARLY or self._carrying is not None:
            return None
        self._quiet_from = now + self._interval
        others, self._count = self._count, 0
        carried = Carried(notification(others + 1), others, now + self._patience)
        if others:
            self._carrying = carried
            self._look_later()
        return carried

    def ended(self, carried: Carried, *, is_sent: bool) -> None:
        """Note the end of an add that was to carry something: what it carried is taken back if it failed, or its job is not due."""
        self._forget(carried)
        if is_sent:
            return
        self._quiet_from = 0.0
        if carried.others:
            self.count(carried.others)

    def postpone(self, carried: Carried) -> None:
        """Take back what an add was to carry that left it out, since another transaction was committing a notification."""
        self._forget(carried)
        self.count(carried.others + 1)

    def count(self, jobs: int = 1) -> None:
        """Have jobs announced that were added without a notification and are due."""
        self._count += jobs
        self._look_later()

    async def close(self) -> None:
        """Send what is still to be announced, and return when it has been."""
        while self._sending is not None or self._count:
            await asyncio.wait([self._sending or self._send()])
        self._stop_waiting()

    def _forget(self, carried: Carried) -> None:
        if self._carrying is carried:
            self._carrying = None

    def _look_later(self) -> None:
        if self._timer is None and self._sending is None:
            self._wait()

    def _wait(self) -> None:
        """Look when there is something to be sent; or sooner, since more may come that is not to wait for that."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(min(self._due_at(), loop.time() + self._interval), self._look)

    def _due_at(self) -> float:
        """When there is something to be sent, if no add carries it."""
        return (
            self._quiet_from if self._count or self._carrying is None else max(self._quiet_from, self._carrying.until)
        )

    def _look(self) -> None:
        """Send what is to be announced, unless an add has carried it and nothing is left."""
        self._timer = None
        if not self._count and self._carrying is None:
            return
        if asyncio.get_running_loop().time() < self._due_at():
            self._wait()
        else:
            self._send()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> asyncio.Task[None]:
        self._stop_waiting()
        count, self._count = self._count, 0
        now = asyncio.get_running_loop().time()
        if self._carrying is not None and self._carrying.until <= now:
            count += self._carrying.others
            self._carrying.others, self._carrying = 0, None
        self._quiet_from = now + self._interval
        self._sending = asyncio.create_task(self._announce(count), name="backfill-notify")
        return self._sending

    async def _announce(self, count: int) -> None:
        try:
            async with Borrowed(self._pool, "cannot notify", keeper=self._keeper) as connection:
                await connection.execute(text("notify_jobs", self._schema), notification(count))
        except BackfillError as error:
            logger.warning("%d new jobs could not be announced; workers find them by polling: %s", count, error)
        finally:
            self._sending = None
            if self._count or self._carrying is not None:
                self._wait()
