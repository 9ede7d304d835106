"""A database with a ledger, a fleet of worker processes on it, and the invariant.

Which faults there are, what comes of each, and which test shows it, here or where the part is tested that has to cope: the table
in docs/reliability.md.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.support.fleet import Fleet
from tests.support.ledger import Added, breaches, breaches_at_the_end, counts, enqueue, make_ledger
from tests.support.until import until

from backfill.client import BackfillClient
from backfill.model import JobSpec, Queue, RetryPolicy
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database

SOON = RetryPolicy(3, 0.05, 0.05, 1.0, 0.0)


@dataclass
class Account:
    """The jobs of a test and what became of them."""

    client: BackfillClient
    connection: asyncpg.Connection
    schema: str

    async def add(self, *jobs: Added) -> list[int]:
        """Add jobs, each task, payload, spec, and where it is to end."""
        return await enqueue(self.client, jobs, self.connection)

    async def rows(self, sql: str, *args: Any) -> list[Any]:
        """Run SQL, in which graphile_worker means the schema."""
        return [tuple(row) for row in await self.connection.fetch(with_schema(sql, self.schema), *args)]

    async def value(self, sql: str, *args: Any) -> Any:
        """The one value of a query."""
        ((value,),) = await self.rows(sql, *args)
        return value

    async def begun(self, count: int, limit: float = 60.0, where: str = "true") -> None:
        """Wait until so many runs have begun."""

        async def enough() -> bool:
            return bool(await self.value(f"select count(*) >= $1 from ledger where {where}", count))

        await until(enough, f"{count} runs where {where}", limit=limit)

    async def open(self, gate: str) -> None:
        """Let jobs that wait for it end."""
        await self.connection.execute("insert into gates values ($1)", gate)

    async def counts(self) -> dict[str, int]:
        """Where the jobs are."""
        return await counts(self.connection, self.schema)

    async def holds(self) -> None:
        """Check the invariant now."""
        assert await breaches(self.connection, self.schema) == []

    async def settled(self, limit: float = 90.0) -> dict[str, int]:
        """Wait until nothing is left to run, and check the invariant all the while and at the end; where the jobs are."""

        async def empty() -> bool:
            await self.holds()
            return bool(await self.value("select count(*) = 0 from graphile_worker._private_jobs"))

        try:
            await until(empty, "the queue is empty", limit=limit)
        finally:
            wrong = await breaches_at_the_end(self.connection, self.schema)
            assert wrong == [], "\n".join(wrong)
        return await self.counts()


def of_all_sorts(count: int, **payload: Any) -> Sequence[Added]:
    """Jobs: every fifth in each of two serial queues, every tenth fails at first, every twentieth for good."""
    jobs: list[Added] = []
    for number in range(count):
        queue = {1: Queue.serial("one"), 2: Queue.serial("two")}.get(number % 5, Queue.parallel())
        spec = JobSpec(queue=queue, retry_policy=SOON, max_attempts=25)
        if number % 20 == 5:
            jobs.append(("work", {"refuses": True}, spec, "dead"))
        else:
            jobs.append(("work", {"fails": int(number % 10 == 3), **payload}, spec, "done"))
    return jobs


@pytest.fixture
async def account(db: "Database", client: BackfillClient) -> Account:
    connection = await db.connect()
    await make_ledger(connection)
    return Account(client, connection, db.schema)


@pytest.fixture
async def fleet(db: "Database", tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(db.dsn, db.schema, tmp_path) as started:
        yield started
    for worker in started.workers:
        print(f"--- log of worker process {worker.pid}\n{worker.log[-6000:]}")  # noqa: T201 - pytest shows it on a failure
