"""Managing jobs where the checks speak of a running worker: C-039 to C-041, R-34, R-35, R-70. The rest: tests/schema/test_manage_jobs.py."""

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill import BackfillClient, JobSpec, WorkerContext, task
from backfill.client import CleanupTask

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

IDS = "select identifier, id from graphile_worker._private_tasks order by identifier"


@pytest.mark.parametrize("inside", [False, True])
async def test_tasks_that_are_kept_have_the_same_ids_and_still_run(
    sql: "Sql", client: BackfillClient, db: "Database", make_runner: "MakeRunner", inside: bool
) -> None:
    """R-35, C-041: also when a handler clears away."""
    ran: list[Any] = []

    @task("clean")
    async def clean(ctx: WorkerContext) -> None:
        async with BackfillClient(ctx.pool, schema=db.schema, install=False) as within:
            await within.cleanup(list(CleanupTask), keep_tasks=["kept"])

    @task("kept")
    async def kept(payload: int) -> None:
        ran.append(payload)

    await client.enqueue("kept", 1)
    await client.enqueue("collected", 1, JobSpec(queue="gone"))
    await sql.run("delete from graphile_worker._private_jobs where payload::text = '1'")
    runner = await make_runner(clean, kept)
    await client.enqueue("clean")
    await sql.named("register_tasks", ["clean", "kept"])
    before = {row["identifier"]: row["id"] for row in await sql.rows(IDS)}
    if inside:
        assert await runner.process_available_jobs() == 1
    else:
        await client.cleanup(list(CleanupTask), keep_tasks=["kept"])
    after = {row["identifier"]: row["id"] for row in await sql.rows(IDS)}
    assert "collected" not in after
    assert after["kept"] == before["kept"]
    assert await sql.rows("select * from graphile_worker._private_job_queues") == []
    await client.enqueue("kept", 2)
    await runner.process_available_jobs()
    assert ran == [2]


async def test_queues_go_though_there_are_jobs_without_one(sql: "Sql", client: BackfillClient) -> None:
    """C-040, R-35: the Rust port then deletes none."""
    await client.enqueue_many([("task",), ("task", 1, JobSpec(queue="used")), ("task", 2, JobSpec(queue="unused"))])
    await sql.run("delete from graphile_worker._private_jobs where payload::text = '2'")
    assert await client.cleanup() == {CleanupTask.GC_JOB_QUEUES: 1}
    assert await sql.value("select queue_name from graphile_worker._private_job_queues") == "used"


async def test_freed_jobs_of_a_dead_worker_start_at_once(
    sql: "Sql", client: BackfillClient, run_worker: "RunWorker", until: "Until"
) -> None:
    """C-038, R-34: its queue's job and one without a queue, by notification; those of another stay."""
    ran: list[int] = []

    @task("task")
    async def note(payload: int) -> None:
        ran.append(payload)

    for number, (by, queue) in enumerate([("pool-1", "q"), ("pool-1", None), ("pool-2", "r")]):
        job_id = await sql.add("task", number, queue_name=queue)
        await sql.run(
            "update graphile_worker._private_jobs set locked_at = now(), locked_by = $2 where id = $1", job_id, by
        )
        if queue:
            await sql.run(
                "update graphile_worker._private_job_queues set locked_at = now(), locked_by = $2 where queue_name = $1",
                queue,
                by,
            )
    async with run_worker(note) as running:
        assert tuple(await client.force_unlock_workers(["pool-1"])) == (2, 1)
        await until(lambda: sorted(ran) == [0, 1], "both have run")
        assert running.worker.claimer.polls == 0
    assert await sql.locks() == (1, 1)


@pytest.mark.parametrize("key", [None, "k"])
async def test_an_enqueue_in_a_transaction_that_is_rolled_back_leaves_no_job(
    db: "Database", sql: "Sql", client: BackfillClient, key: str | None
) -> None:
    """R-70: by the client, in bulk, and by the SQL function."""
    connection: asyncpg.Connection = await db.connect()
    transaction = connection.transaction()
    await transaction.start()
    await client.enqueue("task", 1, JobSpec(job_key=key), connection=connection)
    await client.enqueue_many([("task", 2, JobSpec(job_key=key and "k2")), ("task", 3)], connection=connection)
    await type(sql)(connection, db.schema).add("task", 4, job_key=key and "k3")
    assert await type(sql)(connection, db.schema).count() == 4
    assert await sql.count() == 0
    await transaction.rollback()
    assert await type(sql)(connection, db.schema).count() == 0
