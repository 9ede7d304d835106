"""Borrowing a connection of a pool for one call, so that an outage costs a bounded time and its error says what is known.

What can go wrong, and what then is known:

* **no connection**: the pool's are all in use for too long, or a new one can't be made. Nothing was sent.
* **an answer that says no**: the statement was not carried out.
* **no answer** (the connection broke, the limit is over): the statement may have been carried out. The connection is given up
  rather than handed back, since waiting for its reset would be waiting once more.
* **a server that takes no writes**: the connection is given up, and the pool's others with it as they come back; new ones look
  for the primary.
"""

import asyncio
import contextlib
from types import TracebackType
from typing import Final

from backfill.db.errors import DRIVER_ERRORS, is_connection_error, takes_no_writes, translate
from backfill.db.keeper import Keeper
from backfill.db.limits import ACQUIRE, Limit
from backfill.db.pool import Connection, Pool, PooledConnection, has_ended
from backfill.errors import BackfillError, DatabaseError

_CLOSE: Final = 10.0  # seconds


class Borrowed:
    """A connection of a pool in an ``async with`` block; errors of the driver come out as errors of ours."""

    __slots__ = ("_connection", "_keeper", "_maybe", "_not_done", "_pool", "_what")

    def __init__(
        self,
        pool: Pool,
        what: str,
        *,
        not_done: str = "nothing was sent",
        maybe: str = "whether the statement was carried out is not known",
        keeper: Keeper | None = None,
    ) -> None:
        """Prepare it.

        Args:
            pool: Where the connection comes from.
            what: What the block does, as the beginning of an error's sentence: ``"cannot enqueue send_email"``.
            not_done: The end of that sentence when nothing was sent.
            maybe: The same when no answer came.
            keeper: Has a connection for the block, perhaps, and keeps it afterwards. Then the block must leave the session
                as it was.
        """
        self._pool = pool
        self._what = what
        self._not_done = not_done
        self._maybe = maybe
        self._keeper = keeper
        self._connection: PooledConnection | None = None

    async def __aenter__(self) -> Connection:
        kept = None if self._keeper is None else self._keeper.take()
        if kept is not None:
            if not has_ended(kept):
                self._connection = kept
                return kept
            await self._pool.release(kept)
        try:
            async with asyncio.timeout(ACQUIRE) as waiting:
                self._connection = await self._pool.acquire()
        except (*DRIVER_ERRORS, DatabaseError) as error:
            if waiting.expired():
                said = f"all {self._pool.get_max_size()} connections of the pool were in use for {ACQUIRE:g} s"
            else:
                said = str(translate(error, "no connection", connecting=True))
            raise DatabaseError(f"{self._what}: {said}; {self._not_done}") from error
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None  # noqa: S101 - __aenter__ has set it
        if error is None and self._keeper is not None and self._keeper.keep(connection):
            return
        limit: Limit | None = getattr(connection, "limit", None)
        lost = error is not None and is_connection_error(error)
        if error is not None and takes_no_writes(error):
            await self._pool.expire_connections()
        # What was to be done is done, or its error is on the way. A connection that has ended has left the pool by itself.
        with contextlib.suppress(*DRIVER_ERRORS):
            if lost:
                connection.terminate()
        with contextlib.suppress(*DRIVER_ERRORS):
            await self._pool.release(connection)
        if not isinstance(error, DRIVER_ERRORS) or isinstance(error, BackfillError):
            return
        ours = translate(error, self._what, limit=limit)
        if lost:
            ours = DatabaseError(f"{ours}; {self._maybe}", in_doubt=True)
        raise ours from error


async def close_pool(pool: Pool) -> None:
    """Close a pool: politely, but not for ever."""
    try:
        async with asyncio.timeout(_CLOSE):
            await pool.close()
    except TimeoutError:
        pool.terminate()
