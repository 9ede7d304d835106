"""A proxy that breaks connections, and handlers that count their runs."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.support.proxy import Proxy, Sent, Session
from tests.worker.conftest import Sql

from backfill.sql import text

if TYPE_CHECKING:
    from tests.conftest import Database

When = Literal["before", "after"]


class Fault:
    """Cuts the connection that a statement comes on, once each time it is asked to.

    Attributes:
        proxy: Connections through it can be cut.
        struck: How often it has cut one.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self.proxy = Proxy(dsn, self._rule, self._cut)
        self.struck = 0
        self._schema = schema
        self._sql: str | None = None
        self._when: When = "after"
        self._only_if: Callable[[], Awaitable[Any]] | None = None

    @property
    def dsn(self) -> str:
        """What workers connect to."""
        return self.proxy.dsn

    def strike(self, statement: str, when: When = "after", only_if: Callable[[], Awaitable[Any]] | None = None) -> None:
        """Cut the connection at the next Sync of that statement: before it is carried out, or when its reply is on the way.

        Args:
            statement: Its name.
            when: Before or after.
            only_if: Not this time, but perhaps the next, if this gives something false.
        """
        self._sql, self._when, self._only_if = text(statement, self._schema), when, only_if

    def _rule(self, sent: Sent) -> When | None:
        return self._when if (sent.kind, sent.sql) == ("S", self._sql) else None

    async def _cut(self, session: Session) -> None:
        if self._only_if is None or await self._only_if():
            self._sql = None
            self.struck += 1
            session.cut()


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
