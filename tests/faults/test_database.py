"""The database under worker processes: it dies, is held up, holds rows, loses rows, refuses."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from tests.conftest import SCHEMA
from tests.faults.conftest import Account, of_all_sorts
from tests.support.cluster import Node
from tests.support.fleet import LEASE, Fleet
from tests.support.ledger import make_ledger
from tests.support.until import until

from backfill.client import BackfillClient
from backfill.model import JobSpec, Queue
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database

FLOOD = 20_000  # jobs


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A server that nothing brings back."""
    made = Node()
    try:
        made.make()
        await made.start()
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate shutdown", "killed postmaster"])
async def test_a_crash_of_the_server_under_a_fleet(node: Node, tmp_path: Path, how: signal.Signals) -> None:
    async with BackfillClient(node.dsn(), SCHEMA) as client, Fleet(node.dsn(), SCHEMA, tmp_path) as fleet:
        connection = await asyncpg.connect(node.dsn())
        await make_ledger(connection)
        account = Account(client, connection, SCHEMA)
        await account.add(*of_all_sorts(200, seconds=0.1))
        await fleet.started(2, connection, "--concurrency", 4)
        await account.begun(30)
        connection.terminate()
        node.end(how)
        await restarted(node)
        account.connection = await asyncpg.connect(node.dsn())
        try:
            counted = await account.settled()
            assert (counted["done"], counted["dead"]) == (190, 10)
            assert await fleet.stopped() == [0, 0]
        finally:
            await account.connection.close()


async def restarted(node: Node) -> None:
    """Start it again; after a kill what was left of it may hold its memory for a moment."""
    while True:
        try:
            await node.start()
        except AssertionError:
            if "pre-existing shared memory block" not in (node.folder / "log").read_text()[-2000:]:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def test_a_snapshot_that_holds_the_clean_up_of_rows_back(account: Account, fleet: Fleet, db: "Database") -> None:
    """All that is done stays in the tables as dead rows, and jobs go on. (How fast they do: benchmarks/soak.py.)"""
    holder = await db.connect()
    transaction = holder.transaction(isolation="repeatable_read")
    await transaction.start()
    await holder.fetchval("select count(*) from enqueued")
    await fleet.started(2, account.connection)
    for _ in range(5):
        await account.add(*of_all_sorts(300))
        counted = await account.settled()
    assert (counted["done"], counted["dead"]) == (5 * 285, 5 * 15)
    assert await holder.fetchval("select count(*) from enqueued") == 0
    await transaction.rollback()


async def test_a_transaction_that_holds_rows_of_running_jobs_for_longer_than_a_lease(
    account: Account, fleet: Fleet, db: "Database"
) -> None:
    """They can't be released meanwhile. Others come and go, and nobody takes them for dead."""
    await account.add(*[("waits", "go", JobSpec(queue=Queue.serial(f"q{n}")), "done") for n in range(4)])
    await fleet.started(2, account.connection)
    await account.begun(4)
    holder = await db.connect()
    async with holder.transaction():
        await holder.execute(with_schema("select from graphile_worker._private_jobs for no key update", db.schema))
        since = await account.value("select clock_timestamp()")
        await account.open("go")
        await until(lambda: all_done(account), "their handlers have ended")
        passed = "select clock_timestamp() > $1::timestamptz + make_interval(secs => $2)"
        while not await account.value(passed, since, 2.2 * LEASE):
            others = await account.add(*of_all_sorts(15))
            await account.begun(1, where=f"job = {others[0]}")
            await account.holds()
        assert (
            await account.value("select count(*) from graphile_worker._private_jobs where locked_by is not null") >= 4
        )
    await account.settled()
    assert await account.value("select count(*) from ledger where job <= (select min(job) + 3 from enqueued)") == 4
    assert await fleet.stopped() == [0, 0]
    assert not any("has lost its lease" in worker.log for worker in fleet.workers)


async def all_done(account: Account) -> bool:
    return bool(await account.value("select count(*) >= 4 from ledger where outcome = 'done'"))


async def test_a_queue_row_that_is_collected_during_an_open_add(account: Account, fleet: Fleet, db: "Database") -> None:
    """As Node's clean-up does: it sees no job in the queue, and deletes the row. A worker gives such jobs queues again."""
    await account.add(("work", {}, JobSpec(queue=Queue.serial("q")), "done"))
    workers = await fleet.started(2, account.connection, BACKFILL_STALE_LOCK_CLEANUP_INTERVAL_SECS="1")
    await account.settled()
    adding = Account(account.client, await db.connect(), db.schema)
    transaction = adding.connection.transaction()
    await transaction.start()
    added = await adding.add(*[("work", {}, JobSpec(queue=Queue.serial("q")), "done")] * 5)
    collected = await account.rows(
        "delete from graphile_worker._private_job_queues where locked_at is null and queue_name = 'q'"
        " and not exists (select from graphile_worker._private_jobs where job_queue_id = _private_job_queues.id)"
        " returning id"
    )
    await transaction.commit()
    counted = await account.settled()
    assert counted["done"] == 1 + len(added)
    assert len(collected) == 1
    assert all(worker.runs for worker in workers)


@pytest.mark.timeout(240)
async def test_a_flood_of_failing_jobs(account: Account, fleet: Fleet) -> None:
    spec = JobSpec(max_attempts=1)
    for _ in range(FLOOD // 5000):
        await account.add(*[("refuses", {"n": n}, spec, "dead") for n in range(5000)])
    await fleet.started(2, account.connection, "--concurrency", 20, BACKFILL_LOG_LEVEL="ERROR")
    await account.add(("work", {}, JobSpec(priority=-1), "done"))
    counted = await account.settled(200)
    assert (counted["done"], counted["dead"]) == (1, FLOOD)
