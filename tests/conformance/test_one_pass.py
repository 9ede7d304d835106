"""One pass over what is due: C-006, C-009, C-017 to C-020, C-026, R-13 to R-17."""

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill import QueueConfig, WorkerContext, task

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

HOUR = timedelta(hours=1)


class Note:
    """A task that notes the payloads that it was run with."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []

        @task("task")
        async def note(payload: Any) -> None:
            self.payloads.append(payload)

        self.task = note


class Gate:
    """A task whose runs wait for each other, so many at once."""

    def __init__(self, at_once: int) -> None:
        self.workers: dict[str | None, str] = {}
        self.running, self.most = 0, 0
        self.barrier = asyncio.Barrier(at_once)

        @task("task")
        async def wait(ctx: WorkerContext) -> None:
            self.workers[ctx.job.queue_name] = ctx.worker_id
            self.running += 1
            self.most = max(self.most, self.running)
            await self.barrier.wait()
            self.running -= 1

        self.task = wait


async def queue(sql: "Sql", name: str) -> tuple[Any, Any]:
    row = await sql.row(
        "select locked_at, locked_by from graphile_worker._private_job_queues where queue_name = $1", name
    )
    return row["locked_at"], row["locked_by"]


async def test_an_added_job_runs_once_with_its_payload(sql: "Sql", make_runner: "MakeRunner") -> None:
    """C-006, R-13, R-15: due at once, its queue there and free; then run, and gone."""
    async with sql.connection.transaction():
        now = await sql.value("select now()")
        job_id = await sql.add("task", {"a": [1]}, queue_name="q")
    job = await sql.job(job_id)
    assert job is not None
    assert job["run_at"] == now
    assert await queue(sql, "q") == (None, None)
    note = Note()
    assert await (await make_runner(note.task)).process_available_jobs() == 1
    assert note.payloads == [{"a": [1]}]
    assert await sql.count() == 0
    assert await queue(sql, "q") == (None, None)


async def test_a_job_of_a_task_that_nobody_handles_is_left_alone(sql: "Sql", make_runner: "MakeRunner") -> None:
    """R-14."""
    job_id = await sql.add("other")
    before = await sql.job(job_id)
    assert await (await make_runner(Note().task)).process_available_jobs() == 0
    assert await sql.job(job_id) == before


async def test_a_future_job_waits_until_it_is_due(sql: "Sql", make_runner: "MakeRunner") -> None:
    """C-009, R-15."""
    note = Note()
    runner = await make_runner(note.task)
    await sql.add(run_at=HOUR)
    assert await runner.process_available_jobs() == 0
    assert await sql.count("attempts = 0") == 1
    await sql.run("update graphile_worker._private_jobs set run_at = now()")
    assert await runner.process_available_jobs() == 1
    assert await sql.count() == 0


async def test_what_the_rows_show_while_a_job_runs(sql: "Sql", other: "Sql", make_runner: "MakeRunner") -> None:
    """C-017, R-16: attempts 1, job and queue locked by the same token, which begins with the worker's id."""
    seen: list[Any] = []

    @task("task")
    async def look(ctx: WorkerContext) -> None:
        job = await other.row("select * from graphile_worker._private_jobs")
        seen.append((ctx.worker_id, job, await queue(other, "q")))

    await sql.add(queue_name="q")
    await (await make_runner(look)).process_available_jobs()
    ((worker_id, job, (locked_at, locked_by)),) = seen
    assert job["attempts"] == 1
    assert job["locked_at"] is not None
    assert locked_at is not None
    assert job["locked_by"] == locked_by
    assert locked_by.split("/")[0] == worker_id
    assert await sql.count() == 0
    assert await queue(sql, "q") == (None, None)


async def test_five_queues_run_at_once_on_five_workers(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    """C-018: each queue is held by another worker; the runs wait for each other, so they can only end together."""
    gate = Gate(5)
    for n in range(5):
        await sql.add(queue_name=f"q{n}")
    one = {"queue_configs": [QueueConfig("one", 1)], "poll_interval": timedelta(seconds=0.2), "ready": False}
    async with contextlib.AsyncExitStack() as workers:
        for _ in range(5):
            await workers.enter_async_context(run_worker(gate.task, **one))
        await until(lambda: gate.most == 5, "all five run at once")
        await until(lambda: gate.running == 0, "they have ended")
    assert len(set(gate.workers.values())) == 5
    assert await sql.count() == 0
    assert await sql.locks() == (0, 0)


async def test_five_queues_run_at_once_on_one_worker_with_ten_slots(sql: "Sql", make_runner: "MakeRunner") -> None:
    """R-17."""
    gate = Gate(5)
    for n in range(5):
        await sql.add(queue_name=f"q{n}")
    async with asyncio.timeout(60):
        assert await (await make_runner(gate.task)).process_available_jobs() == 5
    assert gate.most == 5


async def test_one_slot_runs_one_job_after_another_and_drains(sql: "Sql", make_runner: "MakeRunner") -> None:
    """C-019, R-17."""
    gate = Gate(1)
    await sql.add_many(12)
    await sql.add_many(3, queue="'q'")
    assert await (await make_runner(gate.task, queue_configs=[QueueConfig("one", 1)])).process_available_jobs() == 15
    assert gate.most == 1
    assert await sql.count() == 0


async def test_jobs_of_one_queue_run_one_at_a_time_though_slots_are_free(sql: "Sql", make_runner: "MakeRunner") -> None:
    """C-020, R-17: on two workers with three slots each."""
    gate = Gate(1)
    await sql.add_many(12, queue="'q'")
    runners = [await make_runner(gate.task, queue_configs=[QueueConfig("three", 3)]) for _ in range(2)]
    while await sql.count():  # one of them may end while the other holds the queue's only job
        await asyncio.gather(*(runner.process_available_jobs() for runner in runners))
    assert gate.most == 1


@pytest.mark.parametrize("queue_name", [None, "q"])
async def test_a_pass_leaves_what_is_locked_used_up_or_not_due(
    sql: "Sql", make_runner: "MakeRunner", queue_name: str | None
) -> None:
    """C-026."""
    note = Note()
    jobs = {name: await sql.add("task", name, queue_name=queue_name) for name in ("locked", "used up", "later")}
    changes = {
        "locked": "locked_at = now(), locked_by = 'pool-0123456789abcdef01', attempts = 1",
        "used up": "attempts = max_attempts",
        "later": "run_at = now() + interval '1 day'",
    }
    for name, change in changes.items():
        await sql.run(f"update graphile_worker._private_jobs set {change} where id = $1", jobs[name])
    kept = await sql.rows("select * from graphile_worker._private_jobs order by id")
    await sql.add_many(7, **({"queue": f"'{queue_name}'"} if queue_name else {}))
    runner = await make_runner(note.task, dlq_processor_interval=None)
    assert await runner.process_available_jobs() == 7
    assert len(note.payloads) == 7
    assert await sql.rows("select * from graphile_worker._private_jobs order by id") == kept


async def test_a_pass_that_is_cancelled_tells_the_task_and_leaves_nothing_locked(
    sql: "Sql", make_runner: "MakeRunner"
) -> None:
    """C-027. Graphile Worker fails the job; here a stop is nobody's failure, so the job goes back unharmed."""
    started, told = asyncio.Event(), asyncio.Event()

    @task("task")
    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    await sql.add(queue_name="q")
    draining = asyncio.create_task((await make_runner(wait)).process_available_jobs())
    await started.wait()
    draining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await draining
    assert told.is_set()
    assert await sql.locks() == (0, 0)
    assert await sql.count("attempts = 0 and last_error is null") == 1
