"""What a worker does for the whole queue: in which order, and what it clears away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backfill.db import connect
from backfill.model import task
from backfill.worker import WorkerConfig
from backfill.worker.upkeep import QueueCollector

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

OLD = "now() - interval '5 hours'"


@task("task")
async def nothing() -> None:
    """Do nothing."""


async def test_a_worker_frees_old_locks_of_others_and_heals_queues(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    await sql.add_many(1, locked_by="'node'", locked_at=OLD, queue="'q'")
    await sql.run(f"update graphile_worker._private_job_queues set locked_by = 'node', locked_at = {OLD}")
    await sql.add_many(1, queue="'gone'")
    await sql.run("delete from graphile_worker._private_job_queues where queue_name = 'gone'")
    async with run_worker(nothing):
        await until(lambda: is_empty(sql), "they have run")


async def test_a_worker_takes_over_what_is_locked_in_the_name_of_one_that_has_no_row(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    await sql.add_many(1, locked_by="'backfill-gone/3'", locked_at="now()")
    async with run_worker(nothing):
        await until(lambda: is_empty(sql), "it has run")


async def test_it_does_not_look_if_it_is_told_not_to(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    await sql.add_many(1, locked_by="'node'", locked_at=OLD)
    await sql.add_many(1, attempts="25")
    async with run_worker(nothing, stale_lock_cleanup_interval=None) as running:
        assert running.worker.upkeep.cleaner is None
        scanner = running.worker.upkeep.scanner
        assert scanner is not None
        await until(scanner.scanned.is_set)
    assert await sql.count() == 1


async def test_nothing_is_cleared_away_before_used_up_jobs_were_looked_for(
    sql: "Sql", other: "Sql", make_runner: "MakeRunner", until: "Until"
) -> None:
    await sql.add_many(1, locked_by="'node'", locked_at=OLD)
    (job,) = await sql.add_many(1)
    runner, stop = await make_runner(nothing), asyncio.Event()
    await other.run("begin; lock table graphile_worker.backfill_dlq in access exclusive mode")
    running = runner.spawn_background(stop)
    await until(lambda: is_gone(sql, job), "the worker works")
    assert await sql.count("locked_by = 'node'") == 1
    await other.run("commit")
    await until(lambda: is_empty(sql), "it is freed after the scan")
    stop.set()
    await running


async def is_empty(sql: "Sql") -> bool:
    return await sql.count() == 0


async def is_gone(sql: "Sql", job: int) -> bool:
    return await sql.job(job) is None


async def test_a_queue_is_deleted_once_it_was_seen_unused_twice(db: "Database", sql: "Sql") -> None:
    @contextlib.asynccontextmanager
    async def connection() -> AsyncIterator[Any]:
        made = await connect(db.dsn)
        try:
            yield made
        finally:
            await made.close()

    collector = QueueCollector(connection, db.schema)
    await sql.add_many(1, queue="'used'")
    await sql.run("insert into graphile_worker._private_job_queues (queue_name) values ('first'), ('used again')")
    assert await collector.run_once() == 0
    await sql.add_many(1, queue="'used again'")
    await sql.run("insert into graphile_worker._private_job_queues (queue_name) values ('second')")
    async with sql.connection.transaction():
        await sql.named("begin_upkeep", "queue collection", db.schema)
        assert await collector.run_once() == 0, "another process does it"
    assert await collector.run_once() == 1
    rows = await sql.rows("select queue_name from graphile_worker._private_job_queues order by id")
    assert [row[0] for row in rows] == ["used", "used again", "second"]


def test_the_environment_has_the_settings_of_stale_locks() -> None:
    names = ("CLEANUP_INTERVAL", "QUEUE_LOCK_TIMEOUT", "JOB_LOCK_TIMEOUT")
    keys = ("BACKFILL_STALE_LOCK_CLEANUP_INTERVAL_SECS", *(f"BACKFILL_STALE_{name}_SECS" for name in names[1:]))
    url = {"DATABASE_URL": "postgresql://"}
    config = WorkerConfig.from_env(url | dict(zip(keys, ("5", "300", "1800"), strict=True)))
    assert config.stale_lock_cleanup_interval == timedelta(seconds=5)
    assert config.stale_queue_lock_timeout == timedelta(minutes=5)
    assert config.stale_job_lock_timeout == timedelta(minutes=30)
    config = WorkerConfig.from_env(url | dict.fromkeys(keys, "0"))
    assert config.stale_lock_cleanup_interval is None
    assert config.stale_queue_lock_timeout is None
    hour = timedelta(hours=1)
    changed = (
        config.with_stale_lock_cleanup_interval(hour)
        .with_stale_queue_lock_timeout(hour)
        .with_stale_job_lock_timeout(hour)
    )
    assert (changed.stale_lock_cleanup_interval, changed.stale_queue_lock_timeout) == (hour, hour)
    assert changed.stale_job_lock_timeout == hour
