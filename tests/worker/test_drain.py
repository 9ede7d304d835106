"""process_available_jobs: what is due now, with what these jobs add to run at once, and nothing else."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.hooks import ShutdownReason, WorkerShutdown
from backfill.model import JobSpec, Queue, RetryPolicy, task
from backfill.worker import QueueConfig, WorkerContext

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, Sql

    from backfill.client import BackfillClient

AT_ONCE = RetryPolicy(5, 0.0, 0.0)
SOON = timedelta(minutes=1)


@task("task")
async def fine() -> None:
    pass


async def test_nothing_to_do(make_runner: "MakeRunner", sql: "Sql") -> None:
    assert await (await make_runner(fine)).process_available_jobs() == 0


async def test_all_that_is_due_runs_and_the_runs_are_counted(sql: "Sql", make_runner: "MakeRunner") -> None:
    await sql.add_many(700)
    await sql.add_many(50, queue="'q' || n % 4", priority="n % 3")
    await sql.add_many(20, key="'k' || n")
    later = await sql.add(run_at=SOON)
    unknown = await sql.add("unknown")
    runner = await make_runner(fine)
    assert await runner.process_available_jobs() == 770
    assert {row["id"] for row in await sql.rows("select id from graphile_worker._private_jobs")} == {later, unknown}
    assert await sql.locks() == (0, 0)
    assert await runner.process_available_jobs() == 0


async def test_failures_count_and_retries_are_left_though_due_at_once(sql: "Sql", make_runner: "MakeRunner") -> None:
    @task("fails", retry_policy=AT_ONCE)
    async def fails() -> None:
        raise RuntimeError("no")

    await sql.add_many(3, "fails")
    await sql.add("fails", max_attempts=1)
    await sql.add_many(2)
    runner = await make_runner(fails, fine)
    assert await runner.process_available_jobs() == 6
    assert await sql.count("attempts = 1 and locked_by is null") == 3
    assert len(await sql.dead()) == 1
    assert await runner.process_available_jobs() == 3, "they were due when the next call began"
    assert await sql.count("attempts = 2") == 3


async def test_children_run_but_not_those_for_a_later_time(sql: "Sql", make_runner: "MakeRunner") -> None:
    seen: list[int] = []

    @task("parent")
    async def parent(payload: dict[str, int], ctx: WorkerContext) -> None:
        seen.append(payload["n"])
        if payload["n"] > 0:
            await ctx.enqueue("parent", {"n": payload["n"] - 1})
        await ctx.enqueue("task", {}, JobSpec(run_at=await ctx.pool.fetchval("select now() + interval '1 hour'")))

    await sql.add("parent", {"n": 4})
    assert await (await make_runner(parent, fine)).process_available_jobs() == 5
    assert seen == [4, 3, 2, 1, 0]
    assert await sql.count() == 5


async def test_a_child_that_became_due_after_the_call_by_its_own_time_is_left(
    sql: "Sql", make_runner: "MakeRunner"
) -> None:
    @task("parent")
    async def parent(ctx: WorkerContext) -> None:
        soon = await ctx.pool.fetchval("select clock_timestamp() + interval '700 ms'")
        await ctx.enqueue("task", {}, JobSpec(run_at=soon))
        await ctx.pool.fetchval("select pg_sleep(extract(epoch from $1::timestamptz - clock_timestamp()) + 0.01)", soon)

    await sql.add("parent")
    assert await (await make_runner(parent, fine)).process_available_jobs() == 1
    assert await sql.count("run_at < now()") == 1


async def test_children_with_every_kind_of_queue_and_key(sql: "Sql", make_runner: "MakeRunner") -> None:
    ran: list[Any] = []

    @task("parent")
    async def parent(ctx: WorkerContext) -> None:
        for spec in (
            JobSpec(),
            JobSpec(queue=Queue.serial("q")),
            JobSpec(queue=Queue.serial("own")),
            JobSpec(job_key="k"),
            JobSpec(priority=-9),
            JobSpec(queue=Queue.serial("q"), priority=3),
        ):
            await ctx.enqueue("child", len(ran), spec)

    @task("child")
    async def child(payload: Any) -> None:
        ran.append(payload)

    lanes = [QueueConfig.named_queue("own"), QueueConfig("one", 1, priority_range=(-10, -1)), QueueConfig("rest", 2)]
    await sql.add("parent")
    runner = await make_runner(parent, child, queue_configs=lanes)
    assert await runner.process_available_jobs() == 7
    assert len(ran) == 6
    assert await sql.count() == 0


@pytest.mark.parametrize("queue", [None, "own"])
async def test_it_ends_only_when_nothing_runs_any_more(
    sql: "Sql", make_runner: "MakeRunner", queue: str | None
) -> None:
    """A long job's child still runs, though meanwhile everything else had ended long before."""
    release = asyncio.Event()

    @task("long")
    async def long(ctx: WorkerContext) -> None:
        await release.wait()
        await ctx.enqueue("task", {}, JobSpec(queue=queue))

    @task("quick")
    async def quick() -> None:
        asyncio.get_running_loop().call_later(0.05, release.set)

    await sql.add("long")
    await sql.add("quick")
    runner = await make_runner(
        long, quick, fine, queue_configs=[QueueConfig.named_queue("own"), QueueConfig.default_queue(3)]
    )
    assert await runner.process_available_jobs() == 3
    assert await sql.count() == 0


async def test_two_at_once_share_the_work(sql: "Sql", make_runner: "MakeRunner", client: "BackfillClient") -> None:
    ran: list[int] = []

    @task("task")
    async def note(payload: dict[str, int]) -> None:
        ran.append(payload["n"])
        await asyncio.sleep(0)

    await sql.add_many(300)
    await sql.add_many(60, queue="'q' || n % 3")
    one, two = await make_runner(note), await make_runner(note)
    counts = await asyncio.gather(one.process_available_jobs(), two.process_available_jobs())
    assert sum(counts) == len(ran)
    left = await sql.count()
    assert len(ran) + left == 360
    if left:  # a serial job whose queue the other one held when it looked for the last time
        assert await one.process_available_jobs() == left
    assert await sql.locks() == (0, 0)


async def test_without_lanes_for_some_priorities_their_jobs_stay(sql: "Sql", make_runner: "MakeRunner") -> None:
    await sql.add_many(10, priority="n - 5")
    runner = await make_runner(fine, queue_configs=[QueueConfig.priority_queue("positive", 2, 1, 32767)])
    assert await runner.process_available_jobs() == 5
    assert await sql.count("priority > 0") == 0
    assert await sql.count() == 5


async def test_a_cancelled_call_leaves_nothing_locked(sql: "Sql", make_runner: "MakeRunner") -> None:
    started = asyncio.Event()

    @task("long")
    async def long() -> None:
        started.set()
        await asyncio.Event().wait()

    await sql.add_many(5, "long")
    call = asyncio.create_task((await make_runner(long)).process_available_jobs())
    async with asyncio.timeout(30):
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await sql.locks() == (0, 0)
    assert await sql.count("attempts = 0") == 5


async def test_a_slot_that_somebody_cancels_is_named(sql: "Sql", make_runner: "MakeRunner") -> None:
    """It ends the call in order; hooks are told that it was an error."""
    started = asyncio.Event()

    @task("long")
    async def long() -> None:
        started.set()
        await asyncio.Event().wait()

    await sql.add("long")
    runner = await make_runner(long)
    reasons: list[ShutdownReason] = []
    runner.on(WorkerShutdown, lambda event: reasons.append(event.reason))
    call = asyncio.create_task(runner.process_available_jobs())
    async with asyncio.timeout(30):
        await started.wait()
        assert runner.worker is not None
        slots = zip(runner.worker.slots, runner.worker.slot_tasks, strict=True)
        idle = next(at_work for slot, at_work in slots if slot.current is None)
        idle.cancel()
        runner.hurry()
        with pytest.raises(RuntimeError, match=f"the worker's task {idle.get_name()!r} ended by itself"):
            await call
    assert reasons == [ShutdownReason.ERROR]
    assert await sql.locks() == (0, 0)
