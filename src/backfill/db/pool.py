"""Opening connections and pools.

Nothing here sets codecs: payloads are bound and read as text (``$1::text::json``, ``payload::text``), so that the codecs
of a pool that a user brings along cannot change them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import asyncpg.pool

from backfill.db.errors import DRIVER_ERRORS, translate
from backfill.db.hosts import target
from backfill.db.limits import CALL, CONNECT, Limit
from backfill.db.session import Session
from backfill.db.way import way_to
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    PooledConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | PooledConnection
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # the classes are generic in their type stubs only
    PooledConnection = asyncpg.pool.PoolConnectionProxy
    Connection = asyncpg.Connection | PooledConnection
    Pool = asyncpg.Pool

APPLICATION_NAME: Final = "backfill"

# Compiling a statement takes longer than any of ours does: a look for used-up jobs took 1 s of a core on PostgreSQL 15.
SMALL_SETTINGS: Final[Mapping[str, str]] = {"jit": "off"}

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


def mark_unchanged(connection: Connection) -> None:
    """Spare the reset of an acquired connection; of a pool that is not ours it takes place all the same."""
    mark = getattr(connection, "mark_unchanged", None)
    if mark is not None:
        mark()


def has_ended(connection: PooledConnection) -> bool:
    """Whether an acquired connection has ended; it may have left the pool by itself."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True


async def connect(
    url: str,
    *,
    limit: Limit = CALL,
    connect_timeout: float = CONNECT,
    settings: Mapping[str, str] | None = None,
) -> Session:
    """A connection of one's own.

    Args:
        url: ``postgresql://user:password@host:port/database``; for a Unix socket ``postgresql:///database?host=/folder``;
            several hosts with commas in between, of which the one that takes writes is meant.
        limit: How long each statement may take.
        connect_timeout: Seconds until the attempt to connect is given up.
        settings: PostgreSQL settings of the session, such as ``WORKER_SETTINGS``; ``application_name`` is ``backfill``
            unless given. Through a pooler only ``Session.fetch_as_set`` has them.

    Raises:
        DatabaseError: It did not work; the message names host and database and says what to do.
        ConfigurationError: The URL cannot be read.
    """
    named = {"application_name": APPLICATION_NAME, **(settings or {})}
    try:
        return await way_to(url).connect(limit=limit, settings=named, patience=connect_timeout)
    except ValueError:
        raise _unreadable() from None  # the driver's message may quote the password
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot connect to {target(url)}", connecting=True) from error


async def open_pool(
    url: str,
    *,
    min_size: int = 1,
    max_size: int = 10,
    limit: Limit = CALL,
    connect_timeout: float = CONNECT,
    settings: Mapping[str, str] | None = None,
) -> Pool:
    """An open pool; the caller closes it.

    Args:
        url: As for ``connect``.
        min_size: Connections opened at once. They are not kept up: during an outage nothing is tried that nobody asked for.
        max_size: Connections at most.
        limit: How long each statement may take.
        connect_timeout: Seconds until an attempt to connect is given up.
        settings: PostgreSQL settings of each session, read when it begins; ``application_name`` is ``backfill`` unless given.

    Raises:
        DatabaseError: It did not work; the message names host and database and says what to do.
        ConfigurationError: The URL cannot be read, or the sizes do not fit.
    """
    if not 0 <= min_size <= max_size or max_size < 1:
        raise ConfigurationError(f"a pool of {min_size} to {max_size} connections: need 0 <= min_size <= max_size")

    async def dial(*_: Any, **__: Any) -> Session:
        return await connect(url, limit=limit, connect_timeout=connect_timeout, settings=settings)

    pool: Pool = await asyncpg.create_pool(min_size=0, max_size=max_size, connect=dial, connection_class=Session)
    try:
        opened = [await pool.acquire() for _ in range(min_size)]
        for connection in opened:
            mark_unchanged(connection)
            await pool.release(connection)
    except BaseException:
        pool.terminate()
        raise
    return pool


def _unreadable() -> ConfigurationError:
    return ConfigurationError(
        "the database URL cannot be read: write postgresql://user:password@host:port/database, and %-encode characters"
        " such as @ : / ? # in the user name and the password",
    )
