"""A process that dies while it adds jobs leaves all of a transaction's jobs or none, wherever it dies.

What it sends follows one order over all its connections, since it does one thing after the other; so its n-th message is the
n-th of them all.
"""

import asyncio
import itertools
from typing import TYPE_CHECKING

import asyncpg
import pytest
from tests.support.forks import Child, ForkServer
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until_alone
from tests.worker.conftest import Sql
from tests.worker.faults.striking import AWAITED, EVERY, When
from tests.worker.faults.workload import warm_up

from backfill.client import BackfillClient
from backfill.model import JobSpec

if TYPE_CHECKING:
    from tests.conftest import Database

MOMENTS: tuple[tuple[When, frozenset[str]], ...] = (("before", EVERY), ("after", AWAITED))
JOBS: list[tuple[str, int, JobSpec]] = [
    ("plain", 1, JobSpec()),
    ("plain", 2, JobSpec(queue="serial")),
    ("keyed", 3, JobSpec(job_key="key")),
    ("keyed", 4, JobSpec(job_key="another key", queue="serial")),
]


async def add_jobs(dsn: str, schema: str, how: str) -> None:
    """Add the jobs in a process of its own; in the caller's transactions with a row of a table of the application's."""
    async with BackfillClient(dsn, schema, install=False) as client:
        if how == "a batch":
            await client.enqueue_many(JOBS)
            return
        connection = await asyncpg.connect(dsn)
        async with connection.transaction():
            await connection.execute("insert into orders values (1)")
            if how == "one by one in a transaction":
                for job in JOBS:
                    await client.enqueue(*job, connection=connection)
            else:
                await client.enqueue_many(JOBS, connection=connection)
        await connection.close()


class Killing:
    """Kills producers, each at one message, on one database."""

    def __init__(self, sql: Sql, db: "Database", forks: ForkServer, how: str) -> None:
        self._sql = sql
        self._db = db
        self._forks = forks
        self._how = how

    async def at_every(self, when: When, kinds: frozenset[str]) -> list[int]:
        """Kill at the first message, the second, and so on; how many jobs there were each time, the last alive."""
        counts: list[int] = []
        for number in itertools.count(1):
            struck = await self._kill(number, when, kinds)
            counts.append(await self._sql.count())
            orders = await self._sql.value("select count(*) from orders")
            assert counts[-1] in (0, len(JOBS)), f"killed {when} {struck}"
            assert orders == (0 if self._how == "a batch" or not counts[-1] else 1), f"killed {when} {struck}"
            for table in ("orders", "graphile_worker._private_jobs"):
                await self._sql.run(f"delete from {table}")
            for table in ("graphile_worker._private_tasks", "graphile_worker._private_job_queues"):
                await self._sql.run(f"delete from {table}")  # so that each process has to make the names
            if struck is None:
                break
        return counts

    async def _kill(self, number: int, when: When, kinds: frozenset[str]) -> Sent | None:
        seen: list[Sent] = []
        born: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

        def rule(sent: Sent) -> When | None:
            if sent.kind not in kinds:
                return None
            seen.append(sent)
            return when if len(seen) == number else None

        async def kill(_: Session) -> None:
            (await born).kill()
            proxy.cut()

        async with Proxy(self._db.dsn, rule, kill) as proxy:
            child = await self._forks.start(dsn=proxy.dsn, schema=self._db.schema, how=self._how)
            born.set_result(child)
            async with asyncio.timeout(30):
                code = await child.wait()
        struck = seen[number - 1] if len(seen) >= number else None
        assert code == (0 if struck is None else -9)
        await until_alone(self._sql.connection)
        return struck


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["a batch", "a batch in a transaction", "one by one in a transaction"])
async def test_all_of_a_transaction_s_jobs_are_there_or_none(sql: Sql, db: "Database", how: str) -> None:
    await sql.run("create table orders (number int)")
    async with ForkServer(add_jobs, warm_up) as forks:
        killing = Killing(sql, db, forks, how)
        for when, kinds in MOMENTS:
            counts = await killing.at_every(when, kinds)
            # None up to the commit, and all from then on.
            assert counts == sorted(counts)
            assert (counts[0], counts[-1]) == (0, len(JOBS))
