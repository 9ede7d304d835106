"""Locks of others by their age alone, queues whose rows are gone, and what a worker does at its start."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until
from tests.worker.conftest import Claims, Sql

from backfill.client import BackfillClient
from backfill.client.locks import StaleLockCleaner
from backfill.db import Borrowed
from backfill.errors import ConfigurationError, InvalidJob

if TYPE_CHECKING:
    from tests.conftest import Database

OLD, YOUNG = "now() - interval '4 hours 1 minute'", "now() - interval '5 minutes'"


@pytest.fixture
async def sql(db: "Database") -> Sql:
    return Sql(await db.connect(), db.schema)


async def locked(sql: Sql) -> list[str]:
    rows = await sql.rows("select locked_by from graphile_worker._private_jobs where locked_at is not null order by id")
    return [row["locked_by"] for row in rows]


async def test_c046_a_lock_of_four_hours_and_a_minute_is_freed_and_a_young_one_is_not(
    db: "Database", client: BackfillClient, sql: Sql
) -> None:
    """C-046."""
    heard: list[str] = []
    listening = await db.connect()
    await listening.add_listener("jobs:insert", lambda *args: heard.append(str(args[-1])))
    await sql.add_many(2, locked_by="'old'", locked_at=OLD, attempts="3", run_at="now() - interval '5 hours'")
    await sql.add_many(1, locked_by="'young'", locked_at=YOUNG)
    assert await client.release_stale_job_locks() == 2
    assert await locked(sql) == ["young"]
    assert await sql.count("attempts = 3 and run_at > now() - interval '1 hour'") == 2
    await until(lambda: heard, "it is told")
    assert '"count" : 2' in heard[0]


async def test_a_shorter_time_is_taken_at_its_word(client: BackfillClient, sql: Sql) -> None:
    await sql.add_many(1, locked_by="'young'", locked_at=YOUNG)
    assert await client.release_stale_job_locks(timedelta(minutes=6)) == 0
    assert await client.release_stale_job_locks(timedelta(minutes=4)) == 1
    with pytest.raises(InvalidJob, match="above zero"):
        await client.release_stale_job_locks(timedelta())
    with pytest.raises(InvalidJob, match="above zero"):
        await client.startup_cleanup(queue_timeout=timedelta(-1))


async def test_what_our_workers_hold_does_not_go_by_age(client: BackfillClient, sql: Sql) -> None:
    await sql.add_many(2, queue="'q' || n")
    await sql.run(
        f"update graphile_worker._private_jobs set locked_by = 'backfill-1/1', locked_at = {OLD};"
        f"update graphile_worker._private_job_queues set locked_by = 'backfill-1/1', locked_at = {OLD}"
    )
    assert await client.release_stale_job_locks() == 0
    assert await client.release_stale_queue_locks() == 0


async def test_what_somebody_has_locked_is_passed_by(db: "Database", client: BackfillClient, sql: Sql) -> None:
    await sql.add_many(1, locked_by="'old'", locked_at=OLD)
    other = Sql(await db.connect(), db.schema)
    async with other.connection.transaction():
        await other.rows("select from graphile_worker._private_jobs for update")
        assert await client.release_stale_job_locks() == 0


async def test_a_queue_stays_while_its_holder_runs_a_job_of_it(client: BackfillClient, sql: Sql) -> None:
    await sql.add_many(3, queue="'q' || n")
    await sql.run(f"update graphile_worker._private_job_queues set locked_by = 'node', locked_at = {OLD}")
    await sql.run(
        f"update graphile_worker._private_jobs set locked_at = {YOUNG}, locked_by = case id"
        " when (select min(id) from graphile_worker._private_jobs) then 'node' else 'another' end"
        " where id < (select max(id) from graphile_worker._private_jobs)"
    )
    assert await client.release_stale_queue_locks() == 2
    rows = await sql.rows("select queue_name from graphile_worker._private_job_queues where locked_at is not null")
    assert [row["queue_name"] for row in rows] == ["q1"]


async def test_used_up_jobs_are_kept_at_a_start_and_deleted_only_by_name(client: BackfillClient, sql: Sql) -> None:
    await sql.add_many(3, attempts="25")
    await sql.add_many(1, locked_by="'old'", locked_at=OLD, queue="'q'")
    await sql.run(f"update graphile_worker._private_job_queues set locked_by = 'old', locked_at = {OLD}")
    assert await client.startup_cleanup(bury=False) == (0, 1, 1)
    assert await sql.count() == 4
    assert await client.startup_cleanup() == (3, 0, 0)
    assert len(await sql.dead()) == 3
    await sql.add_many(2, attempts="25")
    assert await client.cleanup_permanently_failed_jobs() == 2
    assert await sql.count() == 1


async def test_jobs_whose_queue_is_gone_can_run_again_one_at_a_time(
    db: "Database", client: BackfillClient, sql: Sql
) -> None:
    await sql.add_many(2, queue="'q'")
    await sql.run("delete from graphile_worker._private_job_queues")
    claims = Claims(sql, "backfill-one")
    await claims.register()
    assert await claims.take() == []
    await client.release_stale_job_locks()
    assert len(await claims.take()) == 1
    assert await claims.take() == []
    assert "backfill:lost:" in await sql.value("select queue_name from graphile_worker._private_job_queues")


async def test_it_runs_in_the_background_until_it_is_told_to_stop(client: BackfillClient, sql: Sql) -> None:
    await sql.add_many(1, locked_by="'old'", locked_at=OLD)
    stop = asyncio.Event()
    task = client.start_stale_lock_cleanup(timedelta(hours=1), stop)
    await until(lambda: none_locked(sql), "it is freed")
    stop.set()
    await task
    with pytest.raises(ConfigurationError, match="interval must be above zero"):
        client.start_stale_lock_cleanup(timedelta(), stop)


async def none_locked(sql: Sql) -> bool:
    return await locked(sql) == []


async def test_one_process_at_a_time_looks_and_orphans_are_told_of(
    db: "Database", client: BackfillClient, sql: Sql
) -> None:
    told: list[Any] = []
    borrow: Any = lambda: Borrowed(client.pool, "clean")  # noqa: E731 - short
    cleaner = StaleLockCleaner(borrow, db.schema, 1.0, on_orphans=lambda: told.append(1))
    await sql.add_many(1, locked_by="'old'", locked_at=OLD)
    async with sql.connection.transaction():
        assert (await sql.named("begin_upkeep", "stale lock scan", db.schema))[0]["ours"]
        assert await cleaner.run_once() == (0, 0)
    assert await cleaner.run_once() == (1, 0)
    assert told == []
    await sql.run("update graphile_worker._private_jobs set locked_by = 'backfill-gone/1', locked_at = now()")
    await cleaner.run_once()
    assert told == [1]
