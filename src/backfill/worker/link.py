"""One of a worker's own connections: opened when needed, opened again when lost.

What a lost connection has sent may still be at work on the server, or its transaction may be held open there, with locks that
its successor would wait for. So the successor begins with ending it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from backfill.db import Session, is_connection_error, overran, takes_no_writes
from backfill.sql import text

if TYPE_CHECKING:
    from asyncpg.prepared_stmt import PreparedStatement

_FIRST_PAUSE: Final = 0.05  # seconds
_LONGEST_PAUSE: Final = 5.0


class Link:
    """A dedicated connection that runs named statements, each prepared once; through a pooler, each in a transaction.

    Attributes:
        losses: How often an open connection was lost.
    """

    def __init__(self, connect: Callable[[], Awaitable[Session]], schema: str) -> None:
        """Prepare it; the first statement connects.

        Args:
            connect: Makes a connection.
            schema: The schema that the statements are for.
        """
        self.losses = 0
        self._connect = connect
        self._schema = schema
        self._connection: Session | None = None
        self._prepared: dict[str, PreparedStatement[asyncpg.Record]] = {}
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, name: str, *args: Any) -> list[asyncpg.Record]:
        """The rows of a named statement.

        Raises:
            DatabaseError: There is no connection to be had, or no answer came within the connection's limit.
            one of DRIVER_ERRORS: The statement failed. After an error that ``is_connection_error`` knows, this or the
                other, whether it was carried out is not known.
        """
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._open()
        try:
            if connection.has_pooler:
                rows = await connection.fetch_as_set(text(name, self._schema), *args)
            else:
                prepared = self._prepared.get(name)
                if prepared is None:
                    prepared = self._prepared[name] = await connection.prepare(text(name, self._schema))
                rows = await prepared.fetch(*args)
        except BaseException as error:
            if is_connection_error(error) or takes_no_writes(error) or isinstance(error, asyncio.CancelledError):
                self._drop()
            told = overran(error, name, connection.limit)
            if told is not None:
                raise told from error
            raise
        self._failures = 0
        return rows

    async def pause(self) -> None:
        """Wait before another try: longer after each failure in a row, and at random, so that a fleet spreads out."""
        longest: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 10))
        self._failures += 1
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    async def close(self) -> None:
        """Close the connection, politely if the server answers."""
        connection, self._connection = self._connection, None
        self._prepared.clear()
        if connection is not None and not connection.is_closed():
            await connection.leave()

    async def _open(self) -> Session:
        self._prepared.clear()
        if self._connection is not None:
            self._connection = None
            self.losses += 1
        connection = await self._connect()
        if self.losses:
            try:
                await connection.replace()
            except BaseException:
                connection.terminate()
                raise
        self._connection = connection
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._prepared.clear()
        if connection is not None:
            self.losses += 1
            connection.terminate()
