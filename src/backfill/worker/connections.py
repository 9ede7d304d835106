"""A worker's own connections: one for each purpose, within that purpose's limit of time, named after it on the server."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from backfill.db import (
    CLAIM,
    LISTEN,
    MAINTENANCE,
    RELEASE,
    SMALL_SETTINGS,
    WORKER_SETTINGS,
    Limit,
    Session,
    connect,
    read_moments_as_numbers,
    translate,
)
from backfill.sql import text
from backfill.worker.config import WorkerConfig

POOL: Final = "pool"  # what the connections of handlers are for


class Connections:
    """Makes them."""

    def __init__(self, config: WorkerConfig, worker_id: str) -> None:
        """Prepare it.

        Args:
            config: Where the database is.
            worker_id: Begins the connections' names.
        """
        self._config = config
        self._worker_id = worker_id

    def name_of(self, purpose: str) -> str:
        """The ``application_name`` of a connection: by it others find it when the worker is dead."""
        return f"{self._worker_id}:{purpose}"

    async def connect(self, limit: Limit) -> Session:
        """A connection for the purpose that the limit is for."""
        settings = WORKER_SETTINGS if limit in (CLAIM, RELEASE) else SMALL_SETTINGS
        named = {**settings, "application_name": self.name_of(limit.name)}
        own = self._config.listen_url if limit is LISTEN else None
        connection = await connect(own or self._config.database_url, limit=limit, settings=named)
        if limit is CLAIM:
            await read_moments_as_numbers(connection)
        return connection

    async def send(self, channel: str, payload: str) -> None:
        """Send a notification the way that those about jobs are sent."""
        async with self.maintenance() as connection:
            await connection.fetchval(text("send_notification", self._config.schema), channel, payload)

    @contextlib.asynccontextmanager
    async def maintenance(self) -> AsyncIterator[Session]:
        """A connection for something that is seldom done. Not one of the pool's, which handlers may have exhausted."""
        connection = await self.connect(MAINTENANCE)
        try:
            yield connection
        except TimeoutError as error:
            raise translate(error, "maintenance", limit=MAINTENANCE) from error
        finally:
            await connection.leave()
