"""Hooks of a sweep: asked about each job of a dead worker, and told what became of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until
from tests.worker.test_hooks import Seen, mixed
from tests.worker.test_sweep import dies

from backfill.hooks import (
    FailureReason,
    FailWithBackoff,
    HookRegistry,
    JobInterrupted,
    JobPermanentlyFail,
    JobRecovery,
    Reschedule,
    Skip,
    WorkerRecovered,
)
from backfill.model import RetryPolicy
from backfill.sql import text
from backfill.worker import recovery as module
from backfill.worker.recovery import Recovery
from backfill.worker.sweep import Swept, sweep

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, RunWorker, Sql

FUTURE = datetime(2099, 1, 1, tzinfo=UTC)


async def swept(sql: "Sql", hooks: HookRegistry, *seen: tuple[str, Any], policy: RetryPolicy | None = None) -> Swept:
    recovery = Recovery(hooks, "sweeper", {"task": policy})
    return await sweep(sql.connection, sql.schema, seen, bury=True, moved_by="sweeper", recovery=recovery)


async def test_each_job_is_asked_about_and_told_of_once(sql: "Sql", claims: "Claims") -> None:
    """R-61, R-63: the events of a recovery."""
    hooks, asked = HookRegistry(), list[JobRecovery]()
    hooks.on(JobRecovery, asked.append)
    hooks.on(JobInterrupted, lambda _: None)
    hooks.on(WorkerRecovered, lambda _: None)
    begun, waiting = await sql.add_many(2, queue="case when n = 1 then 'q' end")
    await claims.take()
    done = await swept(sql, hooks, await dies(claims, running=[begun]))
    assert [event.job.id for event in asked] == [begun, waiting]
    assert asked[0].job.queue_name == "q"
    assert asked[0].job.payload == {"n": 1}
    for event in asked:
        assert (event.worker_id, event.previous_worker_id) == ("sweeper", claims.worker)
        assert event.reason == FailureReason.WORKER_CRASHED
    assert [event.name for event in done.events] == ["job_interrupted", "job_interrupted", "worker_recovered"]
    last = done.events[-1]
    assert isinstance(last, WorkerRecovered)
    assert (last.dead_worker_ids, last.jobs_recovered) == ((claims.worker,), 2)
    assert await sql.count("attempts = 1 and id = " + str(begun)) == 1


async def test_hooks_reschedule_jobs_and_have_them_count_as_failed(sql: "Sql", claims: "Claims") -> None:
    """R-64."""
    first, second, third = await sql.add_many(3)
    answers: dict[int, Reschedule | FailWithBackoff] = {
        first: Reschedule(FUTURE, attempts=3),
        second: FailWithBackoff(),
        third: Reschedule(FUTURE),
    }
    hooks = HookRegistry()
    hooks.on(JobRecovery, lambda event: answers[event.job.id])
    await claims.take()
    before = await sql.value("select now()")
    await swept(sql, hooks, await dies(claims, running=[first, second, third]))
    rows = await sql.rows(
        "select attempts, run_at, last_error, locked_at from graphile_worker._private_jobs order by id"
    )
    assert [(row["attempts"], row["locked_at"]) for row in rows] == [(3, None), (1, None), (0, None)]
    assert [rows[0]["run_at"], rows[2]["run_at"]] == [FUTURE, FUTURE]
    assert rows[1]["run_at"] > before + timedelta(seconds=2)  # e seconds
    assert "WorkerCrashed" in rows[1]["last_error"]


async def test_a_job_that_counts_as_failed_waits_as_its_task_s_policy_says_or_its_own(
    sql: "Sql", claims: "Claims"
) -> None:
    plain = await sql.add()
    own = await sql.add(flags=["backfill:retry=7200.0/7200.0/1.0/0.0"])
    unknown = await sql.add("other")
    hooks = HookRegistry()
    hooks.on(JobRecovery, lambda _: FailWithBackoff())
    await claims.take(tasks=("task", "other"))
    dead = await dies(claims, running=[plain, own, unknown])
    await swept(sql, hooks, dead, policy=RetryPolicy(5, 3600.0, 3600.0, 1.0, 0.0))
    waits = await sql.rows(
        "select extract(epoch from run_at - now())::int / 1000 as wait from graphile_worker._private_jobs order by id"
    )
    assert [row["wait"] for row in waits] == [3, 7, 0]


async def test_a_job_that_hooks_leave_stays_locked_with_its_queue(sql: "Sql", claims: "Claims") -> None:
    """R-64."""
    job_id, other = await sql.add_many(2, queue="'q' || n")
    hooks = HookRegistry()
    hooks.on(JobRecovery, lambda event: Skip() if event.job.id == job_id else None)
    hooks.on(WorkerRecovered, lambda _: None)
    hooks.on(JobInterrupted, lambda _: None)
    await claims.take()
    done = await swept(sql, hooks, await dies(claims, running=[job_id, other]))
    job = await sql.job(job_id)
    assert job is not None
    assert (job["locked_by"], job["attempts"]) == (claims.token, 1)
    assert await sql.locks() == (1, 1)
    assert [event.name for event in done.events] == ["job_interrupted", "worker_recovered"]
    last = done.events[-1]
    assert isinstance(last, WorkerRecovered)
    assert (last.dead_worker_ids, last.jobs_recovered) == ((claims.worker,), 1)


async def test_a_job_that_is_quarantined_is_told_as_failed_for_good(sql: "Sql", claims: "Claims") -> None:
    await sql.add(flags=["backfill:crashes=3"])
    hooks = HookRegistry()
    hooks.on(JobPermanentlyFail, lambda _: None)
    hooks.on(JobRecovery, lambda _: Reschedule(FUTURE))
    await claims.take()
    done = await swept(sql, hooks, await dies(claims, running=[]))
    (event,) = done.events
    assert isinstance(event, JobPermanentlyFail)
    (dead,) = await sql.dead()
    assert (event.reason, event.dlq_id, event.job.id) == ("quarantined", dead["id"], dead["original_job_id"])


async def test_hooks_that_do_not_answer_are_not_waited_for(
    sql: "Sql", claims: "Claims", monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait(_: JobRecovery) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    hooks = HookRegistry()
    hooks.on(JobRecovery, wait)
    await sql.add()
    await claims.take()
    await swept(sql, hooks, await dies(claims))
    assert await sql.locks() == (0, 0)
    assert "did not answer" in caplog.text


async def test_without_hooks_no_job_is_read_for_them(sql: "Sql", claims: "Claims") -> None:
    sent: list[str] = []
    await sql.add()
    await claims.take()
    dead = await dies(claims)
    sql.connection.add_query_logger(lambda record: sent.append(record.query))
    done = await swept(sql, HookRegistry(), dead)
    assert done.released == 1
    assert done.events == []
    assert sent
    assert text("jobs_of_dead", sql.schema) not in sent


async def test_a_worker_tells_of_its_sweeps(run_worker: "RunWorker", sql: "Sql", claims: "Claims") -> None:
    job_id = await sql.add(payload="good")
    await claims.take()
    dead, _ = await dies(claims, running=[job_id])
    async with run_worker(mixed, ready=False) as running:
        seen = Seen(running.runner, "worker_recovered", "job_recovery", "job_interrupted", "job_complete")
        running.worker.sweeper.sweep_orphans()
        await sql.run("delete from graphile_worker.backfill_workers where id = $1", dead)
        await until(lambda: seen.counts["job_complete"], "the job has run here")
    assert seen.counts["job_interrupted"] == seen.counts["job_recovery"] == 1
    recovered = [event for event in seen.events if isinstance(event, WorkerRecovered) and event.jobs_recovered]
    assert [event.dead_worker_ids for event in recovered] == [(dead,)]
