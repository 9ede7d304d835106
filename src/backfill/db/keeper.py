"""A pool's connection, kept between statements that follow each other closely.

Lending a connection and taking it back costs asyncpg's pool as much as adding a job costs the server. So who adds jobs
one by one gets the same connection each time, and the pool has it back when nobody has wanted it for a moment. The moment
is short, and one is kept only while the pool has others to give (idle, or not yet opened), which is looked at anew every
``KEEP`` seconds; between the looks, a statement costs next to nothing here. States:

* **none kept**: the next statement's connection is the pool's.
* **kept**: the next statement gets it; when none has come from one look to the next, the pool does.
* **in use**: a statement that comes meanwhile gets another one of the pool's.

After an error a connection always goes back to the pool, which resets it. ``Borrowed`` does the lending.
"""

import asyncio
import contextlib
from typing import Final

from backfill.db.errors import DRIVER_ERRORS
from backfill.db.pool import Pool, PooledConnection, has_ended, mark_unchanged

KEEP: Final = 0.01  # seconds


class Keeper:
    """Keeps one connection of a pool for the next call, if that comes soon.

    Args:
        pool: Whose connection it is; it stays open when this is closed.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: PooledConnection | None = None
        self._was_used = False  # since the last look
        self._timer: asyncio.TimerHandle | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._closed = False

    def take(self) -> PooledConnection | None:
        """The kept connection, if there is one; it may have been closed meanwhile."""
        kept, self._kept = self._kept, None
        return kept

    def keep(self, connection: PooledConnection) -> bool:
        """Keep a connection whose session is as it was, instead of giving it back to the pool; whether that was done."""
        if self._timer is None or self._kept is not None:  # while the timer runs, it looks
            if has_ended(connection):
                return False
            if self._closed or self._kept is not None or not self._pool_has_others():
                mark_unchanged(connection)
                return False
            self._timer = asyncio.get_running_loop().call_later(KEEP, self._look)
        self._kept = connection
        self._was_used = True
        return True

    async def close(self) -> None:
        """Give back what is kept, and keep nothing from now on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept = self.take()
        if kept is not None:
            await self._give_back(kept)
        if self._giving_back is not None:
            await self._giving_back

    def _pool_has_others(self) -> bool:
        return self._pool.get_idle_size() > 0 or self._pool.get_size() < self._pool.get_max_size()

    def _look(self) -> None:
        """Give the kept connection back if it has not been used for a while, or if the pool has no other."""
        self._timer = None
        if self._kept is None:
            return  # it is in use, and the timer is set again when it is kept
        loop = asyncio.get_running_loop()
        if self._was_used and self._pool_has_others():
            self._was_used = False
            self._timer = loop.call_later(KEEP, self._look)
            return
        kept, self._kept = self._kept, None
        self._giving_back = loop.create_task(self._give_back(kept), name="backfill-keeper")

    async def _give_back(self, connection: PooledConnection) -> None:
        """Have the pool take it, without a reset; one that has ended meanwhile has left the pool by itself."""
        mark_unchanged(connection)
        with contextlib.suppress(*DRIVER_ERRORS):
            await self._pool.release(connection)
