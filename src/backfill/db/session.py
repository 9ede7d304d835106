"""A connection of ours: what its session is set to, and how statements go through a pooler that shares sessions."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from backfill.db.errors import DRIVER_ERRORS, is_connection_error
from backfill.db.limits import Limit, Tcp
from backfill.sql import text

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:  # the class is generic in its type stubs only
    _Connection = asyncpg.Connection

_CLOSE: Final = 2.0  # seconds
_PATIENCE: Final = 5_000  # milliseconds for the end of a backend

# What the operating systems call them; Windows and macOS lack some, or have them by other names.
_OPTIONS: Final = (
    ("idle", ("TCP_KEEPIDLE", "TCP_KEEPALIVE")),
    ("interval", ("TCP_KEEPINTVL",)),
    ("count", ("TCP_KEEPCNT",)),
)


class Session(_Connection):
    """A connection that knows its limit, whether a pooler is in between, and whether its pool has to reset it.

    Attributes:
        limit: How long its statements may take; None before ``set_up``.
        has_pooler: Whether its transactions may run in different sessions of the server.
    """

    limit: Limit | None = None
    has_pooler = False
    _transport: asyncio.Transport  # of the driver's class, which has no public way to the socket
    _unchanged = False
    _names: tuple[str, ...] = ()
    _values: tuple[str, ...] = ()

    def set_up(self, tcp: Tcp, limit: Limit, settings: Mapping[str, str], *, has_pooler: bool) -> None:
        """Say what it is for, and have our operating system watch the connection too.

        Args:
            tcp: How.
            limit: How long its statements may take.
            settings: What its session is to have; through a pooler each transaction of ``fetch_as_set`` gets it.
            has_pooler: Whether a pooler is in between.
        """
        self.limit = limit
        self.has_pooler = has_pooler
        wanted = {**settings, **limit.settings()}
        wanted.pop("application_name", None)  # poolers carry this one along
        self._names, self._values = tuple(wanted), tuple(wanted.values())
        watch(self._transport.get_extra_info("socket"), tcp)

    async def fetch_as_set(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """The rows of a statement, run in a transaction that has the settings, for use through a pooler.

        The transaction commits only by a message that is sent after the statement's reply has come: so a statement whose
        reply was lost either was not carried out, or its process on the server is at work in a transaction.
        """
        transaction = self.transaction(isolation="read_committed")
        await transaction.start()
        try:
            await self.execute(text("set_for_transaction", ""), list(self._names), list(self._values))
            rows = await self.fetch(sql, *args)
        except asyncpg.PostgresError as error:
            if not is_connection_error(error):
                await transaction.rollback()
            raise  # a connection that is lost is given up, and its transaction with it
        await transaction.commit()
        return rows

    async def replace(self) -> None:
        """End what is left on the server of connections of the same ``application_name``, which are lost to us.

        Such a backend may hold locks, in a transaction whose end will never arrive, until the network tells it that its
        client is gone. Only for a name that one connection has at a time.
        """
        await self.fetchval(text("end_predecessors", ""), _PATIENCE, self.has_pooler)

    async def leave(self) -> None:
        """Close the connection: politely if the server answers at once."""
        try:
            await self.close(timeout=_CLOSE)
        except DRIVER_ERRORS:
            self.terminate()

    def mark_unchanged(self) -> None:
        """Only statements that leave the session as it was have run since this was acquired: it needs no reset."""
        self._unchanged = True

    def get_reset_query(self) -> str:
        """What the pool sends when the connection comes back: nothing if it was said to be unchanged.

        Nothing through a pooler either: it would reset some session, not the one that was changed.
        """
        if self._unchanged or self.has_pooler:
            self._unchanged = False
            return ""
        return str(super().get_reset_query())


def watch(connected: socket.socket | None, tcp: Tcp) -> None:
    """Have the operating system notice that the peer of a TCP connection is gone, as far as it can."""
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for attribute, names in _OPTIONS:
        number = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if number is not None:
            connected.setsockopt(socket.IPPROTO_TCP, number, getattr(tcp, attribute))
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # a kernel that does not know it: keepalives do what they can
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(tcp.user_timeout * 1000))
