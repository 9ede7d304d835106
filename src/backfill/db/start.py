"""Waiting, at a start, for a server that says itself that it is not ready yet."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from backfill.db import limits
from backfill.db.pool import Connection
from backfill.errors import DatabaseError
from backfill.sql import text

T = TypeVar("T")

logger = logging.getLogger(__name__)

_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds

# Starting up, recovering or shutting down; no connection left; of several servers none is the primary, as in a failover.
# A refused connection or an address that does not answer is more often a mistake, which is told at once.
_PASSING: Final = (
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.TargetServerAttributeNotMatched,
)


async def once_ready(connect: Callable[[], Awaitable[T]]) -> T:
    """What ``connect`` gives, tried for up to ``limits.START`` seconds while the server says "not yet".

    Raises:
        DatabaseError: From ``connect``: another error, or still the same after that time.
    """
    until = time.monotonic() + limits.START
    failures = 0
    while True:
        try:
            return await connect()
        except DatabaseError as error:
            left = until - time.monotonic()
            if not _will_pass(error) or left <= 0:
                raise
            if not failures:
                logger.warning("%s. Will try for another %.0f s", error, left)
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)] * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            failures += 1
            await asyncio.sleep(min(pause, left))


async def check_writable(connection: Connection, where: str) -> None:
    """Return if the connection's server takes writes.

    Args:
        connection: A connection.
        where: What to call the server.

    Raises:
        DatabaseError: It does not.
    """
    if await connection.fetchval(text("is_read_only", "")):
        raise DatabaseError(
            f"{where} takes no writes: it is a standby, or default_transaction_read_only is on. Use the primary's address,"
            " or name all servers in the URL, with commas in between"
        )


def _will_pass(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, _PASSING):
        error = error.__cause__
    return error is not None
