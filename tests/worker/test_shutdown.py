"""Stopping: what runs may finish, what has not begun goes back, what can be cancelled is, and nothing stays locked."""

import asyncio
import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import Task, task
from backfill.worker import QueueConfig, WorkerConfig, WorkerContext, WorkerRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.worker.conftest import Ahead, MakeRunner, RunWorker, Sql, Until

NEVER = timedelta(hours=1)
SHORT = timedelta(seconds=0.4)
ABANDON = timedelta(seconds=4)  # the last quarter has to suffice for the last statement


class Held:
    """A task whose runs wait for the test, or for their cancellation."""

    def __init__(self, then: str = "ends") -> None:
        self.started, self.cancelled, self.finished = 0, 0, 0
        self.may_end = asyncio.Event()

        @task("held")
        async def held() -> None:
            self.started += 1
            while not self.may_end.is_set():
                try:
                    await self.may_end.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    if then == "ends":
                        raise
                    if then == "returns":
                        break
            self.finished += 1

        self.task = held


def in_thread(may_end: threading.Event, started: threading.Event) -> Task[Any]:
    @task("held")
    def held() -> None:
        started.set()
        may_end.wait(60)

    return held


async def nothing_happened(sql: "Sql", count: int) -> None:
    """That many jobs are in the queue as if they had never been claimed."""
    assert await sql.locks() == (0, 0)
    assert await sql.count("attempts = 0 and last_error is null") == await sql.count() == count


async def test_what_runs_may_finish_and_what_waits_is_left(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    held = Held()
    await sql.add_many(250, "held")
    async with run_worker(held.task, ready=False, queue_configs=[QueueConfig("wide", 100)]) as running:
        await until(lambda: held.started == 100, "a hundred run")
        running.stop.set()
        await until(lambda: running.worker.claimer.stopping, "it stops")
        held.may_end.set()
        assert await running.end() == 0
    assert (held.started, held.finished, held.cancelled) == (100, 100, 0)
    await nothing_happened(sql, 150)


async def test_what_was_claimed_ahead_goes_back(
    sql: "Sql", run_worker: "RunWorker", until: "Until", ahead: "Ahead"
) -> None:
    """R-55."""
    await sql.add_many(4_000)
    async with run_worker(ahead.task, ready=False, queue_configs=[QueueConfig("only", 1)]) as running:
        ahead.lanes += running.worker.lanes
        async with asyncio.timeout(30):
            await ahead.blocked.wait()
        running.stop.set()
        await until(lambda: len(running.worker.releaser.held) == 1, "all but the running one went back")
        ahead.may_end.set()
        assert await running.end() == 0
    await nothing_happened(sql, 4_000 - running.worker.releaser.ran)


@pytest.mark.parametrize("queue", [None, "q"])
async def test_handlers_are_cancelled_at_the_end_and_their_jobs_handed_back(
    sql: "Sql", run_worker: "RunWorker", until: "Until", queue: str | None
) -> None:
    """C-023, R-58. Graphile Worker fails the job then; here a stop is nobody's failure."""
    held = Held()
    job_id = await sql.add("held", queue_name=queue)
    async with run_worker(held.task, shutdown_timeout=SHORT, ready=False) as running:
        await until(lambda: held.started == 1, "it runs")
        before = await sql.job(job_id)
        assert await running.end() == 0
    assert (held.cancelled, held.finished) == (1, 0)
    await nothing_happened(sql, 1)
    after = await sql.job(job_id)
    assert before is not None
    assert after is not None
    assert before["run_at"] < after["run_at"], "its next worker may be starting"


async def test_a_handler_that_ends_well_when_cancelled_is_done(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    held = Held("returns")
    await sql.add("held")
    async with run_worker(held.task, shutdown_timeout=SHORT, ready=False) as running:
        await until(lambda: held.started == 1, "it runs")
        await running.end()
    assert (held.cancelled, held.finished) == (1, 1)
    assert await sql.count() == 0


async def test_a_handler_that_swallows_its_cancellation_is_waited_for(
    sql: "Sql", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    held = Held("goes on")
    await sql.add("held")
    async with run_worker(held.task, shutdown_timeout=SHORT, ready=False) as running:
        await until(lambda: held.started == 1, "it runs")
        running.stop.set()
        await until(lambda: "can't be cancelled" in caplog.text, "it is told")
        assert await sql.locks() == (1, 0), "it still runs, and must not start elsewhere"
        assert not running.task.done()
        held.may_end.set()
        assert await running.end() == 0
    assert held.finished == 1
    assert await sql.count() == 0


async def test_a_thread_is_waited_for(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    may_end, started = threading.Event(), threading.Event()
    await sql.add("held")
    async with run_worker(in_thread(may_end, started), shutdown_timeout=SHORT, ready=False) as running:
        try:
            await until(started.is_set, "it runs")
            running.stop.set()
            await until(lambda: running.worker.slots[0].stopping, "it stops")
            assert await sql.locks() == (1, 0)
        finally:
            may_end.set()
        assert await running.end() == 0
    assert await sql.count() == 0


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_a_process_that_is_about_to_exit_abandons_what_cannot_be_cancelled(
    sql: "Sql", run_worker: "RunWorker", until: "Until", kind: str
) -> None:
    held, may_end, started = Held("goes on"), threading.Event(), threading.Event()
    handler = held.task if kind == "coroutine" else in_thread(may_end, started)
    await sql.add("held", queue_name="q")
    async with run_worker(handler, shutdown_timeout=ABANDON, ready=False, abandon=True) as running:
        try:
            await until(lambda: held.started == 1 or started.is_set(), "it runs")
            assert await running.end() == 1
            await nothing_happened(sql, 1)
        finally:
            held.may_end.set()
            may_end.set()
            await until(lambda: all(slot.current is None for slot in running.worker.slots), "it has ended")
    await nothing_happened(sql, 1)


async def test_in_a_hurry_handlers_are_cancelled_at_once(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    held = Held()
    await sql.add_many(5, "held")
    async with run_worker(held.task, shutdown_timeout=NEVER, ready=False) as running:
        await until(lambda: held.started == 5, "they run")
        running.stop.set()
        await until(lambda: running.worker.claimer.stopping, "it stops")
        assert held.cancelled == 0
        running.runner.hurry()
        assert await running.end() == 0
    assert held.cancelled == 5
    await nothing_happened(sql, 5)


async def test_a_background_task_that_the_application_cancels(
    sql: "Sql", make_runner: "MakeRunner", until: "Until"
) -> None:
    held = Held()
    await sql.add_many(30, "held")
    runner = await make_runner(held.task, shutdown_timeout=NEVER)
    background = runner.spawn_background(asyncio.Event())
    await until(lambda: held.started == 10, "ten run")
    background.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await background
    assert held.cancelled == 10
    await nothing_happened(sql, 30)


async def test_a_worker_that_is_cancelled_while_it_stops(sql: "Sql", make_runner: "MakeRunner", until: "Until") -> None:
    held = Held()
    await sql.add_many(30, "held")
    runner = await make_runner(held.task, shutdown_timeout=NEVER)
    stop = asyncio.Event()
    background = runner.spawn_background(stop)
    await until(lambda: held.started == 10, "ten run")
    stop.set()
    await until(lambda: runner.worker is not None and runner.worker.slots[0].stopping, "it waits for them")
    for _ in range(3):
        background.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await background
    assert held.cancelled == 10
    await nothing_happened(sql, 30)
    await until(lambda: alone(sql), "the server has seen its connections off")


async def test_an_application_that_ends_without_stopping_its_worker(
    sql: "Sql", make_config: "Callable[..., WorkerConfig]", caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio.run then cancels every task there is, those of the worker's own parts included."""
    config = make_config(shutdown_timeout=timedelta(seconds=20))
    counts, others = [], []

    async def close_after(background: asyncio.Task[int], runner: WorkerRunner) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.wait([background])
            await runner.close()

    async def application() -> None:
        held = Held()
        runner = await WorkerRunner.builder(config).define_job(held.task).build()
        background = runner.spawn_background(asyncio.Event())
        others.append(asyncio.create_task(close_after(background, runner)))
        async with asyncio.timeout(30):
            while held.started < 10:
                await asyncio.sleep(0.005)
        counts.append(held.started)
        assert not background.done()

    await sql.add_many(30, "held")
    await asyncio.to_thread(asyncio.run, application())
    assert counts == [10]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await nothing_happened(sql, 30)


async def test_a_claim_that_cannot_end_does_not_leave_its_jobs_locked(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """Somebody has locked the whole table; the claim goes on in the database when the worker has long gone."""
    held = Held()
    async with run_worker(held.task, shutdown_timeout=timedelta(seconds=2)) as running:
        transaction = other.connection.transaction()
        await transaction.start()
        await other.run("lock table graphile_worker._private_jobs in access exclusive mode")
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: claims_wait(sql, other), "the claim waits for the table")
        await other.add_many(5, "held")
        running.stop.set()
        await running.task
        await transaction.commit()
    await until(lambda: alone(sql), "no other backend is at work")
    await nothing_happened(sql, 5)


async def claims_wait(sql: "Sql", other: "Sql") -> bool:
    return bool(
        await sql.value(
            "select exists (select from pg_stat_activity where application_name like '%:claim'"
            " and $1 = any(pg_blocking_pids(pid)))",
            other.connection.get_server_pid(),
        )
    )


async def alone(sql: "Sql") -> bool:
    return not await sql.value(
        "select exists (select from pg_stat_activity where datname = current_database()"
        " and application_name like 'backfill-%' and application_name not like '%:pool')"  # the runner's, which is open
    )


async def test_a_runner_runs_twice(sql: "Sql", make_runner: "MakeRunner", until: "Until") -> None:
    seen = []

    @task("held")
    async def note(ctx: WorkerContext) -> None:
        name = await ctx.pool.fetchval("show application_name")
        assert name == f"{ctx.worker_id}:pool", "others would not find its sessions when it is dead"
        seen.append(ctx.worker_id)

    runner = await make_runner(note)
    for times in (1, 2):
        stop = asyncio.Event()
        background = runner.spawn_background(stop)
        await sql.add("held")
        await until(lambda times=times: len(seen) == times, "it has run")
        stop.set()
        assert await background == 0
    assert len(set(seen)) == 2
    await nothing_happened(sql, 0)
    await until(lambda: alone(sql), "the server has seen its connections off")


async def test_a_stop_that_was_asked_for_before_the_start(sql: "Sql", make_runner: "MakeRunner") -> None:
    held = Held()
    await sql.add_many(3, "held")
    stop = asyncio.Event()
    stop.set()
    held.may_end.set()
    async with asyncio.timeout(30):
        await (await make_runner(held.task)).run_until_cancelled(stop)
    assert await sql.locks() == (0, 0)
    assert await sql.count() == 3 - held.finished


async def test_no_task_or_connection_is_left(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    held = Held()
    held.may_end.set()
    before = asyncio.all_tasks()
    async with run_worker(held.task):
        await sql.add("held")
        await until(lambda: held.finished == 1, "it has run")
    assert asyncio.all_tasks() - before == set()
    await until(lambda: alone(sql), "the server has seen its connections off")


@pytest.mark.parametrize("way", ["run", "drain"])
async def test_a_slot_that_ends_by_itself_stops_the_worker_in_order(
    sql: "Sql", make_runner: "MakeRunner", until: "Until", way: str
) -> None:
    held = Held()
    await sql.add("held")
    runner = await make_runner(held.task, shutdown_timeout=NEVER)
    run = runner.run_until_cancelled(asyncio.Event()) if way == "run" else runner.process_available_jobs()
    running = asyncio.create_task(run)
    await until(lambda: held.started == 1, "one slot is busy")
    worker = runner.worker
    assert worker is not None
    next(task for slot, task in zip(worker.slots, worker.slot_tasks, strict=True) if slot.current is None).cancel()
    await until(lambda: worker.claimer.stopping, "it stops")
    held.may_end.set()
    async with asyncio.timeout(30):
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            await running
    assert held.finished == 1
    await nothing_happened(sql, 0)
