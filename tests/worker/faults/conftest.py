"""A proxy that breaks connections, and handlers that count their runs."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.support.proxy import Proxy, Sent
from tests.worker.conftest import Sql

from backfill.sql import text

if TYPE_CHECKING:
    from tests.conftest import Database


class Fault:
    """Cuts the connection that a statement comes on, once each time it is asked to.

    Attributes:
        proxy: Connections through it can be cut.
        struck: How often it has cut one.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self.proxy = Proxy(dsn, self._rule)
        self.struck = 0
        self._schema = schema
        self._sql: str | None = None
        self._when: Literal["before", "after"] = "after"

    @property
    def dsn(self) -> str:
        """What workers connect to."""
        return self.proxy.dsn

    def strike(self, statement: str, when: Literal["before", "after"] = "after") -> None:
        """Cut the connection at the next Sync of that statement: before it is carried out, or when its reply is on the way."""
        self._sql, self._when = text(statement, self._schema), when

    def _rule(self, sent: Sent) -> Literal["before", "after"] | None:
        if sent.kind != "S" or sent.sql != self._sql:
            return None
        self._sql = None
        self.struck += 1
        return self._when


class Ran:
    """Counts runs, by whatever the handler notes of them.

    Attributes:
        runs: The counts.
    """

    def __init__(self) -> None:
        self.runs: Counter[Any] = Counter()
        self._changed = asyncio.Event()

    def note(self, what: Any) -> None:
        """Count a run."""
        self.runs[what] += 1
        self._changed.set()

    async def total(self, count: int) -> None:
        """Wait for that many runs in all."""
        async with asyncio.timeout(40):
            while self.runs.total() < count:
                self._changed.clear()
                await self._changed.wait()


async def is_empty(sql: Sql) -> bool:
    """Whether the queue has no job at all."""
    return await sql.count() == 0


@pytest.fixture
async def fault(db: "Database") -> AsyncIterator[Fault]:
    made = Fault(db.dsn, db.schema)
    async with made.proxy:
        yield made


@pytest.fixture
def ran() -> Ran:
    return Ran()
