"""Stopping when somebody takes the schema to a revision that this version does not know.

Whoever applies a revision says so on the channel ``worker:migrate``, in the transaction that applies it. The channel is the
database's, and other schemas in it are no concern of ours, so the notification only has us look at the ledger of our own
schema. So does each time that LISTEN comes up, since one may have been missed. What is found:

* a breaking revision above the newest that we know: ``run`` raises, and the worker stops in order;
* another revision above it: the worker goes on, and from here on adds jobs by ``add_job`` alone;
* nothing new: nothing.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from backfill.db import DRIVER_ERRORS
from backfill.errors import BreakingMigrationError, DatabaseError
from backfill.schema import is_familiar
from backfill.schema.state import NEWEST_REVISION
from backfill.sql import text

if TYPE_CHECKING:
    from backfill.client import BackfillClient

logger = logging.getLogger(__name__)

MIGRATE: Final = "worker:migrate"

_PAUSE: Final = 1.0  # seconds before the ledger is read again after an error


class MigrationWatch:
    """Watches the ledger of a client's schema, by notifications."""

    def __init__(self, client: "BackfillClient") -> None:
        self._client = client
        self._asked = asyncio.Event()

    def on_notify(self, payload: str) -> None:
        """Somebody has applied a revision, to this schema or another."""
        if _revision(payload) > NEWEST_REVISION:
            self._asked.set()

    def look(self) -> None:
        """Look at the ledger soon."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            BreakingMigrationError: The schema is at a revision that this version cannot work with.
        """
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._look()
            except (*DRIVER_ERRORS, DatabaseError) as error:
                logger.warning("cannot read the schema's revision now: %s", str(error) or type(error).__name__)
                await asyncio.sleep(_PAUSE)
                self._asked.set()

    async def _look(self) -> None:
        schema = self._client.schema
        async with self._client.pool.acquire() as connection:
            breaking = await connection.fetchval(text("schema_breaking_revision", schema))
            if breaking is not None and breaking > NEWEST_REVISION:
                error = BreakingMigrationError(schema, breaking, NEWEST_REVISION)
                logger.warning("stopping: %s", error)
                raise error
            familiar = await is_familiar(connection, schema)
        if self._client.enqueuer.familiar and not familiar:
            logger.info(
                "schema %r was changed in a way that is not breaking: the worker goes on, and adds jobs by add_job alone",
                schema,
            )
        self._client.enqueuer.familiar = familiar


def _revision(payload: str) -> int:
    """The revision that a notification speaks of; one above all that are known if it cannot be read."""
    try:
        number = msgspec.json.decode(payload)["migrationNumber"]
    except (msgspec.DecodeError, RecursionError, LookupError, TypeError):
        return NEWEST_REVISION + 1
    return number if isinstance(number, int) else NEWEST_REVISION + 1
