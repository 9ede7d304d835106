"""Opening connections and pools.

Nothing here sets codecs: payloads are bound and read as text (``$1::text::json``, ``payload::text``), so that the codecs
of a pool that a user brings along cannot change them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import asyncpg.pool

from backfill.db.errors import DRIVER_ERRORS, translate
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
    _Connection = asyncpg.Connection[asyncpg.Record]
else:  # the classes are generic in their type stubs only
    Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
    Pool = asyncpg.Pool
    _Connection = asyncpg.Connection

APPLICATION_NAME: Final = "backfill"

# Settings of the connections that claim and release. Their statements are prepared once, perhaps while the tables are
# empty, and must then go on using the indexes whatever the statistics say: the general plan, with the planner's ways
# around an index switched off. Not for scans, such as maintenance does.
WORKER_SETTINGS: Final[Mapping[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # Any other level refuses what another worker has just changed, instead of passing it by.
    "default_transaction_isolation": "read committed",
}


class SessionConnection(_Connection):
    """A connection of a pool of ours, which can be told that its session is as it was.

    A pool resets a session when a connection comes back, for whoever left a setting, a lock or a LISTEN behind. That is a
    round trip: as much as adding a job takes.
    """

    _unchanged = False

    def mark_unchanged(self) -> None:
        """Only statements that leave the session as it was have run since this was acquired: it needs no reset."""
        self._unchanged = True

    def get_reset_query(self) -> str:
        """What the pool sends when the connection comes back; nothing if it was said to be unchanged."""
        if self._unchanged:
            self._unchanged = False
            return ""
        return str(super().get_reset_query())


def mark_unchanged(connection: Connection) -> None:
    """Spare the reset of an acquired connection; of a pool that is not ours it takes place all the same."""
    mark = getattr(connection, "mark_unchanged", None)
    if mark is not None:
        mark()


def target(url: str) -> str:
    """Where a database URL leads, for messages: database, host and port, never user or password."""
    try:
        parts = urlsplit(url)
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        host = options.get("host") or parts.hostname or "the default host"
        port = options.get("port") or parts.port
        database = options.get("dbname") or options.get("database") or unquote(parts.path.lstrip("/"))
    except ValueError:
        return "the database of the database URL"
    where = f"{host}:{port}" if port and not host.startswith("/") else host
    return f"database {database!r} at {where}" if database else f"the default database at {where}"


async def connect(
    url: str,
    *,
    connect_timeout: float = 10.0,
    command_timeout: float | None = 60.0,
    settings: Mapping[str, str] | None = None,
) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection of one's own.

    Args:
        url: ``postgresql://user:password@host:port/database``; for a Unix socket ``postgresql:///database?host=/folder``.
        connect_timeout: Seconds until the attempt to connect is given up.
        command_timeout: Seconds that a statement may take before it is cancelled; None = no limit.
        settings: PostgreSQL settings of the session, such as ``WORKER_SETTINGS``; ``application_name`` is ``backfill``
            unless given.

    Raises:
        DatabaseError: It did not work; the message names host and database and says what to do.
        ConfigurationError: The URL cannot be read.
    """
    try:
        return await asyncpg.connect(
            url,
            timeout=connect_timeout,
            command_timeout=command_timeout,
            server_settings={"application_name": APPLICATION_NAME, **(settings or {})},
        )
    except ValueError:
        raise _unreadable() from None  # the driver's message may quote the password
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot connect to {target(url)}") from error


async def open_pool(
    url: str,
    *,
    min_size: int = 1,
    max_size: int = 10,
    connect_timeout: float = 10.0,
    command_timeout: float | None = 60.0,
    settings: Mapping[str, str] | None = None,
) -> Pool:
    """An open pool; the caller closes it.

    Args:
        url: As for ``connect``.
        min_size: Connections opened at once and kept.
        max_size: Connections at most.
        connect_timeout: Seconds until an attempt to connect is given up.
        command_timeout: Seconds that a statement may take before it is cancelled; None = no limit.
        settings: PostgreSQL settings of each session; ``application_name`` is ``backfill`` unless given.

    Raises:
        DatabaseError: It did not work; the message names host and database and says what to do.
        ConfigurationError: The URL cannot be read, or the sizes do not fit.
    """
    if not 0 <= min_size <= max_size or max_size < 1:
        raise ConfigurationError(f"a pool of {min_size} to {max_size} connections: need 0 <= min_size <= max_size")
    try:
        return await asyncpg.create_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            timeout=connect_timeout,
            command_timeout=command_timeout,
            connection_class=SessionConnection,
            server_settings={"application_name": APPLICATION_NAME, **(settings or {})},
        )
    except ValueError:
        raise _unreadable() from None  # the driver's message may quote the password
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot connect to {target(url)}") from error


def _unreadable() -> ConfigurationError:
    return ConfigurationError(
        "the database URL cannot be read: write postgresql://user:password@host:port/database, and %-encode characters"
        " such as @ : / ? # in the user name and the password",
    )
