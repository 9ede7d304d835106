"""How a database is reached: what is learned about a URL at its first connection and used for all later ones.

* **Which server.** A URL may name several, of which one is the primary. They are tried in turn, each with a limit of its own,
  so that one that is gone costs a few seconds and not the whole attempt; the one that was good last comes first. Unless the
  URL says ``target_session_attrs`` itself, several hosts mean the one that takes writes.
* **Settings that the server does not know.** ``client_connection_check_interval`` needs a help of the server's operating
  system that some lack; they refuse the connection. It is then left out.
* **A pooler in between**, such as PgBouncer. In transaction mode each transaction may run in another session of the server:
  nothing that lasts longer than a transaction (prepared statements, settings, LISTEN, advisory locks of the session) works,
  mostly without an error. It shows itself in two ways: it refuses settings that come with the connection, or the server's
  process has another id than the one that was announced. Whether it is in session mode can't be told with certainty, so every
  pooler is treated as being in transaction mode, which is right for both.
"""

import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import asyncpg

from backfill.db.errors import DRIVER_ERRORS, is_connection_error, remedy
from backfill.db.hosts import Host, asks_for_kind, hosts_of, target
from backfill.db.limits import CHECK_INTERVAL, CONNECT, CONNECT_EACH, TCP, Limit
from backfill.db.session import Session
from backfill.errors import DatabaseError
from backfill.sql import text

logger = logging.getLogger(__name__)

_UNSUPPORTED: Final = "unsupported startup parameter"  # PgBouncer's words, whatever its language


class Way:
    """The way to the database of one URL.

    Attributes:
        has_pooler: Whether a pooler is in between; None before the first connection.
    """

    def __init__(self, url: str) -> None:
        self.has_pooler: bool | None = None
        self._url = url
        self._hosts = hosts_of(url)
        self._first = 0
        self._can_check = True
        kind_given = asks_for_kind(url) or bool(os.environ.get("PGTARGETSESSIONATTRS"))
        self._kind = "read-write" if len(self._hosts) > 1 and not kind_given else None

    async def connect(self, *, limit: Limit, settings: Mapping[str, str], patience: float = CONNECT) -> Session:
        """A new connection.

        Args:
            limit: How long each of its statements may take.
            settings: Settings of the session, ``application_name`` among them.
            patience: Seconds until an attempt to connect is given up.

        Raises:
            one of DRIVER_ERRORS: It did not work.
            ValueError: The URL cannot be read.
        """
        connection = await self._connect(limit, settings, patience)
        if self.has_pooler is None:
            await self._find_out(connection)
            if self.has_pooler:  # this one keeps prepared statements
                connection.terminate()
                connection = await self._connect(limit, settings, patience)
        connection.set_up(TCP, limit, settings, has_pooler=bool(self.has_pooler))
        return connection

    async def _find_out(self, connection: Session) -> None:
        """See whether a pooler is in between."""
        try:
            # Without a name: a pooler would keep a named statement in a session that others get.
            process = await (await connection.prepare(text("backend", ""), name="")).fetchval()
        except BaseException:
            connection.terminate()
            raise
        self._found(pooler=process != connection.get_server_pid())

    def _found(self, *, pooler: bool) -> None:
        if pooler and not self.has_pooler:
            logger.warning(
                "%s is reached through a connection pooler, such as PgBouncer; it is taken for one in transaction mode:"
                " no prepared statements, settings with each transaction, no LISTEN",
                target(self._url),
            )
        self.has_pooler = pooler

    async def _connect(self, limit: Limit, settings: Mapping[str, str], patience: float) -> Session:
        """Connect, with fewer settings if the server or a pooler refuses some."""
        while True:
            try:
                return await self._to_some_host(limit, settings, patience)
            except asyncpg.PostgresError as error:
                if _UNSUPPORTED in str(error) and not self.has_pooler:
                    self._found(pooler=True)
                elif CHECK_INTERVAL in str(error) and self._can_check:
                    self._can_check = False
                else:
                    raise

    async def _to_some_host(self, limit: Limit, settings: Mapping[str, str], patience: float) -> Session:
        """Try the hosts in turn, from the one that was good last."""
        if len(self._hosts) <= 1:
            return await self._to(None, limit, settings, patience)
        order = [*range(self._first, len(self._hosts)), *range(self._first)]
        failures: list[tuple[Host, BaseException]] = []
        for number in order:
            try:
                connection = await self._to(self._hosts[number], limit, settings, min(patience, CONNECT_EACH))
            except DRIVER_ERRORS as error:
                if not is_connection_error(error):
                    raise
                failures.append((self._hosts[number], error))
            else:
                self._first = number
                return connection
        said = "; ".join(f"{host}: {_said(error)}" for host, error in failures)
        advice = remedy(failures[-1][1], connecting=True)
        message = f"cannot connect to {target(self._url)}: {said}" + (f" ({advice})" if advice else "")
        raise DatabaseError(message) from failures[-1][1]

    async def _to(self, host: Host | None, limit: Limit, settings: Mapping[str, str], patience: float) -> Session:
        where: dict[str, Any] = {} if host is None else {"host": host.name, "port": host.port}
        if self._kind is not None:
            where["target_session_attrs"] = self._kind
        startup = {"application_name": settings["application_name"]}
        if not self.has_pooler:
            startup = {**TCP.settings(), **settings, **limit.settings()}
            if not self._can_check:
                del startup[CHECK_INTERVAL]
        else:
            where["statement_cache_size"] = 0
        connection: Session = await asyncpg.connect(
            self._url,
            timeout=patience,
            command_timeout=limit.client_seconds,
            connection_class=Session,
            server_settings=startup,
            **where,
        )
        return connection


def _said(error: BaseException) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "it is not the kind of server that is wanted (a standby takes no writes)"
    return str(error).partition("\n")[0] or (
        "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    )


@lru_cache(maxsize=64)
def way_to(url: str) -> Way:
    """The way to a URL, the same for everybody in this process.

    Raises:
        ValueError: The URL cannot be read.
    """
    return Way(url)
