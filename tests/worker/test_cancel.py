"""Cancelling jobs that run: the wish is in the database, and the job ends by it whoever has it then."""

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until
from tests.worker import process_tasks
from tests.worker.test_processes import ended, pids_in

from backfill import BackfillClient
from backfill.hooks import JobPermanentlyFail
from backfill.model import Task, task
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import RunWorker, Sql

HOUR = timedelta(hours=1)


class Held:
    """A task whose runs wait until they are cancelled, or for the test."""

    def __init__(self, then: str = "ends") -> None:
        self.started, self.cancelled, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @task("held")
        async def held() -> None:
            self.started.set()
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                if then == "ends":
                    raise
                if then == "fails":
                    raise OSError("worth another try") from None
            if then == "fails":
                raise OSError("worth another try")

        self.task: Task[Any] = held


async def wishes(sql: "Sql") -> int:
    return int(await sql.value("select count(*) from graphile_worker.backfill_cancellations"))


async def settled(sql: "Sql") -> bool:
    return await sql.count() == 0 and await wishes(sql) == 0


@pytest.mark.parametrize("then", ["ends", "fails", "returns"])
async def test_the_handler_is_cancelled_and_the_job_is_gone(
    run_worker: "RunWorker", sql: "Sql", client: BackfillClient, then: str
) -> None:
    held = Held(then)
    async with run_worker(held.task, lease=HOUR):  # so that a beat comes only by the notification
        job = await sql.add("held", queue_name="q")
        await held.started.wait()
        done = await client.cancel_jobs([job])
        assert (done.cancelled, [asked.id for asked in done.requested]) == ([], [job])
        await held.cancelled.wait()
        await until(lambda: gone(sql), "it is gone")
    assert await sql.dead() == []
    assert await sql.locks() == (0, 0)


async def gone(sql: "Sql") -> bool:
    return await sql.count() == 0


async def test_it_becomes_a_dead_letter_if_that_was_asked(
    run_worker: "RunWorker", sql: "Sql", client: BackfillClient
) -> None:
    held = Held()
    async with run_worker(held.task):
        job = await sql.add("held", {"a": 1})
        await held.started.wait()
        await client.cancel_jobs([job], dead_letter=True, reason="the customer left")
        (entry,) = await until(sql.dead, "it is a dead letter")
    assert entry["failure_reason"] == "Job was cancelled while running: the customer left"
    assert entry["original_job_id"] == job
    assert await settled(sql)


@pytest.mark.parametrize("dead_letter", [True, False])
async def test_hooks_and_the_log_are_told_that_it_was_cancelled(
    run_worker: "RunWorker", sql: "Sql", client: BackfillClient, caplog: pytest.LogCaptureFixture, dead_letter: bool
) -> None:
    held = Held()
    told: list[JobPermanentlyFail] = []
    async with run_worker(held.task) as running:
        running.runner.on(JobPermanentlyFail, told.append)
        job = await sql.add("held")
        await held.started.wait()
        await client.cancel_jobs([job], dead_letter=dead_letter)
        await until(lambda: told, "the hook is told")
    (event,) = told
    entries = [entry["id"] for entry in await sql.dead()]
    assert (event.job.id, event.reason) == (job, "cancelled")
    assert entries == ([event.dlq_id] if dead_letter else [])
    assert (event.dlq_id is None) != dead_letter
    assert f"(cancelled), {f'now dead letter {event.dlq_id}' if dead_letter else 'it is gone'}: " in caplog.text


async def test_a_waiting_job_becomes_a_dead_letter_at_once(sql: "Sql", client: BackfillClient) -> None:
    job = await sql.add("held")
    done = await client.cancel_jobs([job], dead_letter=True, reason="not needed")
    assert [cancelled.id for cancelled in done.cancelled] == [job]
    (entry,) = await sql.dead()
    assert entry["failure_reason"] == "Job was cancelled: not needed"
    assert await settled(sql)


async def test_a_beat_finds_the_wish_without_the_notification(run_worker: "RunWorker", sql: "Sql") -> None:
    held = Held()
    async with run_worker(held.task, lease=timedelta(seconds=5)):
        job = await sql.add("held")
        await held.started.wait()
        await sql.run("insert into graphile_worker.backfill_cancellations (job_id) values ($1)", job)
        await held.cancelled.wait()
        await until(lambda: settled(sql), "it is gone")


async def test_a_failure_that_would_be_retried_ends_it_though_the_worker_has_not_heard(
    run_worker: "RunWorker", sql: "Sql"
) -> None:
    held = Held("fails")
    async with run_worker(held.task, lease=HOUR):
        job = await sql.add("held")
        await held.started.wait()
        await sql.run("insert into graphile_worker.backfill_cancellations (job_id) values ($1)", job)
        held.may_end.set()
        await until(lambda: settled(sql), "it is gone, and so is the wish")
    assert not held.cancelled.is_set()
    assert await sql.dead() == []


async def test_a_thread_can_look(run_worker: "RunWorker", sql: "Sql", client: BackfillClient) -> None:
    started, never = threading.Event(), threading.Event()

    @task("thread")
    def look(ctx: WorkerContext) -> None:
        started.set()
        while not ctx.cancel_requested:
            never.wait(0.005)
        raise ValueError("stopped")

    async with run_worker(look):
        job = await sql.add("thread")
        await until(started.is_set, "it runs")
        await client.cancel_jobs([job])
        await until(lambda: settled(sql), "it is gone")
    assert await sql.dead() == []


async def test_a_process_is_killed(run_worker: "RunWorker", sql: "Sql", client: BackfillClient, tmp_path: Path) -> None:
    async with run_worker(process_tasks.hang):
        job = await sql.add("p_hang", {"file": str(tmp_path / "pids")})
        pids = await pids_in(tmp_path / "pids", 2)
        await client.cancel_jobs([job])
        await until(lambda: settled(sql), "it is gone")
        assert all(ended(pid) for pid in pids)


@pytest.mark.parametrize("dead_letter", [False, True])
async def test_what_another_kind_of_worker_ran_is_cancelled_when_it_is_let_go(
    run_worker: "RunWorker", sql: "Sql", client: BackfillClient, dead_letter: bool
) -> None:
    held = Held()
    job = await sql.add("held")
    await sql.run(
        "update graphile_worker._private_jobs set locked_by = 'graphile_worker_1', locked_at = now(), attempts = 1"
    )
    done = await client.cancel_jobs([job], dead_letter=dead_letter)
    assert [asked.locked_by for asked in done.requested] == ["graphile_worker_1"]
    async with run_worker(held.task, lease=timedelta(seconds=5)):
        await sql.run(
            "update graphile_worker._private_jobs"
            " set locked_by = null, locked_at = null, run_at = now() + interval '1 hour', last_error = 'once'"
        )
        await until(lambda: settled(sql), "it is gone")
    assert [entry["failure_reason"] for entry in await sql.dead()] == ["Job was cancelled"] * dead_letter
    assert not held.started.is_set()


async def test_a_wish_about_a_job_that_is_done_is_forgotten(run_worker: "RunWorker", sql: "Sql") -> None:
    held = Held()
    await sql.run("insert into graphile_worker.backfill_cancellations (job_id) values (4711)")
    async with run_worker(held.task, lease=timedelta(seconds=5)):
        await until(lambda: settled(sql), "it is forgotten")


async def test_a_cancelled_job_that_came_out_of_the_dead_letter_queue_is_back_there(
    run_worker: "RunWorker", sql: "Sql", client: BackfillClient
) -> None:
    held = Held()
    await sql.add("held")
    (entry,) = (await client.fail_jobs([1], "first")).values()
    async with run_worker(held.task):
        again = await client.requeue_dlq_job(entry)
        await held.started.wait()
        await client.cancel_jobs([again.id])
        await until(lambda: settled(sql), "it is gone")
    (kept,) = await sql.dead()
    assert (kept["id"], kept["requeued_job_id"]) == (entry, None)


async def test_the_jobs_of_a_dead_worker_are_cancelled_by_the_sweep(
    run_worker: "RunWorker", sql: "Sql", db: "Database", client: BackfillClient
) -> None:
    held = Held()
    job = await sql.add("held")
    await sql.run(
        "update graphile_worker._private_jobs set locked_by = 'backfill-gone/1', locked_at = now(), attempts = 1"
    )
    await client.cancel_jobs([job])
    await sql.run(
        "insert into graphile_worker.backfill_workers (id, host, pid, version, lanes, tasks, lease, heartbeat_at, dead_at)"
        " values ('backfill-gone', 'h', 1, '1', '[]', '{}', interval '5 s', now() - interval '1 hour', now())"
    )
    async with run_worker(held.task, lease=timedelta(seconds=5)):
        await until(lambda: settled(sql), "it is gone")
    assert not held.started.is_set()
