"""Schedulers on a database of their own, with a clock that the test sets."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill import CronItem, parse_crontab
from backfill.cron import CronScheduler
from backfill.db import Connection
from backfill.hooks import HookRegistry
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def at(text: str) -> datetime:
    """A time: `2024-01-15T04:00`, of UTC unless it has an offset."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


@dataclass
class Cron:
    """The cron side of a database, seen by SQL."""

    connection: asyncpg.Connection
    schema: str
    broken: list[BaseException] = field(default_factory=list)
    opened: int = 0

    async def rows(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """Run SQL in which graphile_worker means the test's schema."""
        return await self.connection.fetch(with_schema(sql, self.schema), *args)

    async def jobs(self, identifier: str | None = None) -> list[tuple[str, str, str, bool]]:
        """Task, run_at, `_cron.ts` and `_cron.backfilled` of all jobs, by id."""
        found = await self.rows(
            "select tasks.identifier, run_at, payload::text from graphile_worker._private_jobs as jobs"
            " join graphile_worker._private_tasks as tasks on tasks.id = task_id"
            " where $1::text is null or tasks.identifier = $1 order by jobs.id",
            identifier,
        )
        shown = []
        for task, run_at, payload in found:
            cron = json.loads(payload)["_cron"]
            shown.append((task, f"{run_at:%d %H:%M}", cron["ts"], cron["backfilled"]))
        return shown

    async def times(self, identifier: str | None = None) -> list[str]:
        """The minutes of the jobs: day, hour and minute."""
        return [run_at for _, run_at, _, _ in await self.jobs(identifier)]

    async def known(self) -> dict[str, tuple[datetime, datetime | None]]:
        rows = await self.rows("select * from graphile_worker._private_known_crontabs order by identifier")
        return {row["identifier"]: (row["known_since"], row["last_execution"]) for row in rows}

    async def know(self, identifier: str, since: datetime, last: datetime | None = None) -> None:
        await self.rows(
            "insert into graphile_worker._private_known_crontabs values ($1, $2, $3)", identifier, since, last
        )

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """What a scheduler gets its connection from; raises what is in `broken` instead."""
        if self.broken:
            raise self.broken[0]
        self.opened += 1
        yield self.connection

    def scheduler(
        self, items: str | Sequence[CronItem], hooks: HookRegistry | None = None, **more: Any
    ) -> CronScheduler:
        found = parse_crontab(items) if isinstance(items, str) else items
        return CronScheduler(found, self.schema, self.connect, hooks=hooks, **more)


@pytest.fixture
async def cron(db: "Database") -> Cron:
    return Cron(await db.connect(), db.schema)


@pytest.fixture
async def more_crons(db: "Database") -> Callable[[], Awaitable[Cron]]:
    """A function that gives a further session on the same schema."""

    async def make() -> Cron:
        return Cron(await db.connect(), db.schema)

    return make
