"""Hooks of a worker's life: built, started, stopped, and what a stop cuts short."""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until
from tests.worker.test_hooks import Seen

from backfill.hooks import (
    AfterJobRun,
    BeforeJobRun,
    Fail,
    FailureReason,
    FailWithBackoff,
    HookRegistry,
    JobInterrupted,
    JobRecovery,
    JobStart,
    Reschedule,
    ShutdownReason,
    Skip,
    WorkerInit,
    WorkerShutdown,
    WorkerStart,
)
from backfill.model import task
from backfill.worker import QueueConfig, WorkerRunner

if TYPE_CHECKING:
    from tests.worker.conftest import Running, RunWorker, Sql

SHORT = timedelta(seconds=2)  # of a stop; the last second is for what has to be cancelled
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)


class Hangs:
    """A task whose jobs run until they are cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

        @task("task")
        async def hangs() -> None:
            self.begun.set()
            await asyncio.Event().wait()

        self.task = hangs


@pytest.fixture
def hangs() -> Hangs:
    return Hangs()


async def cut_short(running: "Running", hangs: Hangs, sql: "Sql", **given: Any) -> tuple[Any, Seen]:
    """Add a job and stop the worker while it runs; the job's row, and what was told and asked."""
    seen = Seen(running.runner)
    job_id = await sql.add(**given)
    await hangs.begun.wait()
    await running.end()
    return await sql.job(job_id), seen


async def test_a_workers_life_is_told_in_order(make_config: Any, sql: "Sql") -> None:
    """C-058."""
    told: list[Any] = []

    class Life:
        def register(self, registry: HookRegistry) -> None:
            for event in (WorkerInit, WorkerStart, JobStart, WorkerShutdown):
                registry.on(event, self.tell)

        async def tell(self, event: Any) -> None:
            told.append(event)
            if not isinstance(event, JobStart):
                assert await event.pool.fetchval("select 1") == 1

    @task("task")
    async def nothing() -> None: ...

    builder = WorkerRunner.builder(make_config()).define_job(nothing).add_plugin(Life())
    assert told == []
    async with await builder.build() as runner:
        (init,) = told
        assert (init.schema, init.concurrency) == (sql.schema, runner.worker_count)
        await sql.add()
        assert await runner.process_available_jobs() == 1
        assert runner.worker is not None
        first = runner.worker.id
        stop = asyncio.Event()
        background = runner.spawn_background(stop)
        await sql.add()
        await until(lambda: len(told) == 6, "the second run has begun its job")
        stop.set()
        await background
        second = runner.worker.id
    assert runner.hooks.errors == {}
    assert [event.name for event in told] == ["worker_init", *["worker_start", "job_start", "worker_shutdown"] * 2]
    assert [event.worker_id for event in told[1:]] == [first] * 3 + [second] * 3
    assert [told[3].reason, told[6].reason] == [ShutdownReason.GRACEFUL] * 2


async def test_everything_is_released_and_told_before_worker_shutdown(run_worker: "RunWorker", sql: "Sql") -> None:
    begun, states = asyncio.Event(), []

    @task("task")
    async def works() -> None:
        begun.set()

    async def look(event: WorkerShutdown) -> None:
        states.append((await sql.locks(), await sql.count(), seen.names))

    async with run_worker(works) as running:
        seen = Seen(running.runner.on(WorkerShutdown, look), "job_complete")
        await sql.add()
        await begun.wait()
    assert states == [((0, 0), 0, ["job_complete"])]


@pytest.mark.parametrize("cancel", [False, True], ids=["stop", "cancellation"])
async def test_hooks_of_the_start_that_hang_hold_up_no_stop(
    cancel: bool, run_worker: "RunWorker", hangs: Hangs, sql: "Sql"
) -> None:
    waiting = asyncio.Event()

    async def wait(_: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with run_worker(hangs.task, ready=False) as running:
        seen = Seen(running.runner.on("worker_start", wait), "worker_start", "worker_shutdown")
        await waiting.wait()
        if cancel:
            running.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running.task
        else:
            await running.end()
    assert seen.names == ["worker_start", "worker_shutdown"]
    assert await sql.value("select count(*) from graphile_worker.backfill_workers") == 0


async def test_an_error_is_told_as_the_reason(
    run_worker: "RunWorker", hangs: Hangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_worker(hangs.task) as running:
        seen = Seen(running.runner, "worker_shutdown")
        monkeypatch.setattr(running.worker.lanes[0], "take_stale", lambda: None)  # the loop that calls it breaks
        with pytest.raises(RuntimeError, match="ended by itself"):
            await running.task
    assert seen.only("worker_shutdown").reason == ShutdownReason.ERROR


async def test_a_cancellation_is_told_as_graceful(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    async with run_worker(hangs.task) as running:
        seen = Seen(running.runner)
        running.runner.on("worker_shutdown", seen.take)
        await sql.add()
        await hangs.begun.wait()
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
    assert seen.names[-2:] == ["job_interrupted", "worker_shutdown"]
    assert seen.events[-1].reason == ShutdownReason.GRACEFUL


@pytest.mark.parametrize("way", [["--once"], []], ids=["once", "on and on"])
async def test_a_signal_is_told_as_the_reason(way: list[str], db: Any, sql: "Sql", tmp_path: Any) -> None:
    (tmp_path / "hooked.py").write_text(
        "import asyncio, sys\n"
        "from backfill import WorkerRunner, task\n"
        "@task('task')\n"
        "async def hangs():\n"
        "    print('begun', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "def make(config):\n"
        "    builder = WorkerRunner.builder(config).define_job(hangs)\n"
        "    return builder.on('worker_shutdown', lambda event: print('reason', event.reason, flush=True))\n"
    )
    await sql.add()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "backfill", "worker", "hooked:make", *way),
        *("--database-url", db.dsn, "--schema", db.schema),
        cwd=tmp_path,
        env={**os.environ, "SHUTDOWN_TIMEOUT_SECS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
    assert out == b"reason signal\n", err.decode()


async def test_a_job_that_a_stop_cuts_short(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    """R-58."""
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        before = await sql.value("select now()")
        job, seen = await cut_short(running, hangs, sql, queue_name="q")
    assert (job["attempts"], job["locked_at"], job["last_error"]) == (0, None, None)
    assert job["run_at"] >= before + timedelta(seconds=1)
    assert await sql.locks() == (0, 0)
    assert seen.names == [
        "job_fetch",
        "before_job_run",
        "job_start",
        "after_job_run",
        "job_recovery",
        "job_interrupted",
    ]
    after, recovery, interrupted = seen.events[-3:]
    assert "stopped" in after.error
    assert recovery.previous_worker_id == recovery.worker_id == running.worker.id
    assert {recovery.reason, interrupted.reason} == {FailureReason.SHUTDOWN_ABORTED}


async def test_an_interruption_is_told_to_those_who_want_nothing_else(
    run_worker: "RunWorker", hangs: Hangs, sql: "Sql"
) -> None:
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        seen = Seen(running.runner, "job_interrupted")
        assert not running.runner.hooks.around_runs
        await sql.add()
        await hangs.begun.wait()
        await running.end()
    assert seen.names == ["job_interrupted"]


async def test_a_hook_reschedules_what_a_stop_cut_short(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    """R-64."""
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        running.runner.on(JobRecovery, lambda _: Reschedule(FUTURE, attempts=3))
        job, seen = await cut_short(running, hangs, sql)
    assert (job["attempts"], job["run_at"], job["locked_at"]) == (3, FUTURE, None)
    assert seen.names[-1] == "job_interrupted"


async def test_a_hook_has_it_count_as_a_failure(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    """R-64."""
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        running.runner.on("job_recovery", lambda _: FailWithBackoff())
        job, seen = await cut_short(running, hangs, sql)
    assert (job["attempts"], job["locked_at"]) == (1, None)
    assert "the worker stopped before the job had ended" in job["last_error"]
    assert seen.counts["job_interrupted"] == 1
    assert seen.counts["job_fail"] == 0


async def test_a_hook_has_a_last_attempt_count_as_a_failure(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        running.runner.on("job_recovery", lambda _: FailWithBackoff())
        job, seen = await cut_short(running, hangs, sql, max_attempts=1)
    assert job is None
    assert len(await sql.dead()) == 1
    assert seen.names[-2:] == ["job_interrupted", "job_permanently_fail"]


async def test_a_hook_has_it_left_as_it_is(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    """R-64."""
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        running.runner.on(JobRecovery, lambda _: Skip())
        job, seen = await cut_short(running, hangs, sql)
    assert (job["attempts"], job["locked_by"].split("/")[0]) == (1, running.worker.id)
    assert running.worker.releaser.held == {}
    assert seen.names[-1] == "after_job_run"  # the first answer stands, so the second handler was not asked


@pytest.mark.parametrize(("answer", "last"), [(Skip(), "job_complete"), (Fail("odd"), "job_fail")])
async def test_after_a_run_that_was_cut_short_a_hook_can_settle_it(
    answer: Any, last: str, run_worker: "RunWorker", hangs: Hangs, sql: "Sql"
) -> None:
    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        running.runner.on(AfterJobRun, lambda _: answer)
        job, seen = await cut_short(running, hangs, sql)
    assert (job is None) is (last == "job_complete")
    assert seen.names[-1] == last
    assert seen.counts["job_interrupted"] == 0


async def test_a_hook_that_hangs_before_the_run_is_cancelled_by_a_stop(
    run_worker: "RunWorker", hangs: Hangs, sql: "Sql"
) -> None:
    async def wait(_: BeforeJobRun) -> None:
        hangs.begun.set()
        await asyncio.Event().wait()

    async with run_worker(hangs.task, shutdown_timeout=SHORT) as running:
        running.runner.on(BeforeJobRun, wait)
        job, seen = await cut_short(running, hangs, sql)
    assert (job["attempts"], job["locked_at"]) == (0, None)
    assert seen.counts["job_start"] == 0
    assert seen.counts["job_interrupted"] == 1


async def test_hooks_that_hang_during_a_stop_are_not_waited_for(
    run_worker: "RunWorker", hangs: Hangs, sql: "Sql", caplog: pytest.LogCaptureFixture
) -> None:
    async def wait(_: Any) -> None:
        await asyncio.Event().wait()

    async with run_worker(hangs.task, shutdown_timeout=timedelta(seconds=6)) as running:
        for name in ("after_job_run", "job_recovery", "job_interrupted", "worker_shutdown"):
            running.runner.on(name, wait)
        running.runner.hurry()
        job, _ = await cut_short(running, hangs, sql)
    assert (job["attempts"], job["locked_at"]) == (0, None)
    assert caplog.text.count("did not answer within 1 s of a stop") == 2
    assert "are not told" in caplog.text
    assert "worker_shutdown took longer" in caplog.text


async def test_a_stop_during_after_job_run_keeps_what_the_handler_did(run_worker: "RunWorker", sql: "Sql") -> None:
    asked = asyncio.Event()

    @task("task")
    async def works() -> None: ...

    async def wait(_: AfterJobRun) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with run_worker(works, shutdown_timeout=SHORT) as running:
        seen = Seen(running.runner, "job_complete", "job_interrupted")
        running.runner.on(AfterJobRun, wait)
        await sql.add()
        await asked.wait()
        await running.end()
    assert seen.names == ["job_complete"]
    assert await sql.count() == 0


async def test_about_a_job_that_is_lost_nobody_is_asked(run_worker: "RunWorker", hangs: Hangs, sql: "Sql") -> None:
    async with run_worker(hangs.task) as running:
        seen = Seen(running.runner)
        job_id = await sql.add()
        await hangs.begun.wait()
        await sql.run("update graphile_worker._private_jobs set locked_by = 'somebody' where id = $1", job_id)
        (slot,) = [slot for slot in running.worker.slots if slot.current is not None]
        slot.cancel("lost")
        await until(lambda: running.worker.releaser.stale, "its outcome met no claim")
    assert seen.names == ["job_fetch", "before_job_run", "job_start"]


async def test_a_claim_that_is_lost_while_hooks_are_asked_ends_no_later_job(
    run_worker: "RunWorker", sql: "Sql"
) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    @task("task")
    async def works() -> None: ...

    async def wait(_: AfterJobRun) -> None:
        if not asked.is_set():
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with run_worker(works, queue_configs=[QueueConfig.default_queue(1)]) as running:
        seen = Seen(running.runner, "job_fetch", "job_complete")
        running.runner.on(AfterJobRun, wait)
        await sql.add()
        await asked.wait()
        running.worker.slots[0].cancel("lost")
        await cancelled.wait()
        await sql.add()
        await until(lambda: seen.counts["job_complete"] == 2, "the first has ended well, and so has the next")
    assert seen.counts["job_fetch"] == 2  # none was handed back and taken again


async def test_a_handler_that_cannot_be_cancelled_is_told_as_interrupted_when_it_is_abandoned(
    run_worker: "RunWorker", sql: "Sql"
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    @task("task")
    async def stubborn() -> None:
        begun.set()
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async with run_worker(stubborn, abandon=True, shutdown_timeout=SHORT) as running:
        seen = Seen(running.runner)
        await sql.add()
        await begun.wait()
        assert await running.end() == 1
        assert seen.counts["job_interrupted"] == 1
        may_end.set()
    assert seen.counts[JobInterrupted.name] == 1
