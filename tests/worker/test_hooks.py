"""Hooks around jobs: in which order, what they change, and that they harm nobody else."""

import asyncio
import contextvars
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until as wait_until

from backfill.errors import ValidationFailed
from backfill.hooks import (
    EVENTS,
    AfterJobRun,
    BeforeJobRun,
    BeforeJobSchedule,
    Continue,
    Fail,
    HookRegistry,
    JobComplete,
    JobFail,
    JobFetch,
    JobPermanentlyFail,
    JobStart,
    LocalQueueGetJobsComplete,
    LocalQueueReturnJobs,
    Skip,
)
from backfill.model import RetryPolicy, task
from backfill.worker import QueueConfig, WorkerContext, WorkerRunner, teller

if TYPE_CHECKING:
    from tests.worker.conftest import Ahead, MakeRunner, RunWorker, Sql

NEVER = RetryPolicy(max_attempts=2, initial_delay=timedelta(days=1), max_delay=timedelta(days=1), jitter_factor=0)
AROUND_JOBS = [
    name for name in EVENTS if "job_" in name and not name.startswith("cron") and name != "before_job_schedule"
]


@task("task", retry_policy=NEVER)
async def mixed(payload: Any, ctx: WorkerContext) -> None:
    """Fails if its payload says how."""
    if payload == "fail":
        raise OSError("out of order")
    if payload == "permanent":
        raise ValueError("no such thing")


class Seen:
    """The events that a runner's handlers have seen, in their order."""

    def __init__(self, runner: WorkerRunner, *names: str) -> None:
        self.events: list[Any] = []
        for name in names or AROUND_JOBS:
            runner.on(name, self.take)

    def take(self, event: Any) -> None:
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.names)

    def only(self, name: str) -> Any:
        (found,) = [event for event in self.events if event.name == name]
        return found


async def test_jobs_that_handlers_add_are_asked_about(make_runner: "MakeRunner", sql: "Sql") -> None:
    got: list[Any] = []

    @task("task")
    async def adds(payload: dict[str, Any], ctx: WorkerContext) -> None:
        got.append(payload)
        if payload["n"] < 2:
            await ctx.enqueue("task", {"n": payload["n"] + 1})

    def stamp(event: BeforeJobSchedule) -> Continue:
        return Continue({**event.payload, "stamped": event.identifier})

    await sql.add(payload={"n": 0})
    runner = await make_runner(adds)
    assert await runner.on(BeforeJobSchedule, stamp).process_available_jobs() == 3
    assert got == [{"n": 0}, {"n": 1, "stamped": "task"}, {"n": 2, "stamped": "task"}]


@pytest.mark.parametrize(
    ("payload", "last"), [("good", "job_complete"), ("fail", "job_fail"), ("permanent", "job_permanently_fail")]
)
async def test_the_order_around_one_job(payload: str, last: str, make_runner: "MakeRunner", sql: "Sql") -> None:
    job_id = await sql.add(payload=payload, queue_name="q", priority=-3)
    runner = await make_runner(mixed)
    seen = Seen(runner)
    assert await runner.process_available_jobs() == 1
    assert seen.names == ["job_fetch", "before_job_run", "job_start", "after_job_run", last]
    assert runner.worker is not None
    for event in seen.events:
        assert (event.job.id, event.job.payload, event.job.queue_name, event.job.attempts) == (job_id, payload, "q", 1)
        assert event.worker_id == runner.worker.id
    assert seen.events[1].payload == payload
    after, end = seen.events[3:]
    assert after.duration == end.duration > timedelta(0)
    if payload == "good":
        assert (after.error, after.detail) == (None, None)
    else:
        assert after.error == end.error
        assert '"traceback"' in end.detail
        assert after.detail == end.detail
    assert runner.hooks.errors == {}


async def test_the_counts_are_exact_in_the_mixed_case(make_runner: "MakeRunner", sql: "Sql") -> None:
    """R-44."""
    for payload in ("good", "good", "fail", "permanent"):
        await sql.add(payload=payload)
    last = await sql.add(payload="fail", max_attempts=1)
    runner = await make_runner(mixed)
    seen = Seen(runner)
    assert await runner.process_available_jobs() == 5
    assert seen.counts == {
        "job_fetch": 5,
        "before_job_run": 5,
        "job_start": 5,
        "after_job_run": 5,
        "job_complete": 2,
        "job_fail": 1,
        "job_permanently_fail": 2,
    }
    failed = seen.only("job_fail")
    assert (failed.error, failed.will_retry) == ("OSError: out of order", True)
    assert timedelta(hours=23) < failed.retry_in <= timedelta(hours=24)
    gone = {event.job.payload: event for event in seen.events if event.name == "job_permanently_fail"}
    dead = {row["original_job_id"]: row["id"] for row in await sql.dead()}
    assert (gone["permanent"].reason, gone["permanent"].error) == ("permanent", "ValueError: no such thing")
    assert (gone["fail"].reason, gone["fail"].dlq_id) == ("exhausted", dead[last])


async def test_counts_over_many_jobs_and_several_plugins(make_config: Any, sql: "Sql") -> None:
    """R-45."""

    class Counts:
        def __init__(self) -> None:
            self.counter: Counter[str] = Counter()

        def register(self, registry: HookRegistry) -> None:
            for event in (JobFetch, JobStart, JobComplete):
                registry.on(event, self.count)

        async def count(self, event: Any) -> None:
            self.counter[event.name] += 1

    first, second = Counts(), Counts()
    await sql.add_many(1200)
    builder = WorkerRunner.builder(make_config()).define_job(mixed).add_plugin(first).add_plugin(second)
    async with await builder.build() as runner:
        assert await runner.process_available_jobs() == 1200
    assert first.counter == second.counter == {"job_fetch": 1200, "job_start": 1200, "job_complete": 1200}


async def test_before_run_skip_completes_without_a_run(make_runner: "MakeRunner", sql: "Sql") -> None:
    """R-46."""
    await sql.add(payload="fail")
    runner = await make_runner(mixed)
    runner.on(BeforeJobRun, lambda _: Skip())
    seen = Seen(runner)
    assert await runner.process_available_jobs() == 1
    assert seen.names == ["job_fetch", "job_complete"]
    assert seen.only("job_complete").duration == timedelta(0)
    assert await sql.count() == 0
    assert await sql.dead() == []


async def test_before_run_fail_is_a_failure_without_a_run(make_runner: "MakeRunner", sql: "Sql") -> None:
    """R-46."""
    job_id = await sql.add(payload="good")
    runner = await make_runner(mixed)
    runner.on(BeforeJobRun, lambda _: Fail("not on a Sunday"))
    seen = Seen(runner)
    assert await runner.process_available_jobs() == 1
    assert seen.names == ["job_fetch", "job_fail"]
    job = await sql.job(job_id)
    assert job is not None
    assert (job["attempts"], job["last_error"], job["locked_at"]) == (1, "JobFailed: not on a Sunday", None)


async def test_after_run_skip_counts_as_success(make_runner: "MakeRunner", sql: "Sql") -> None:
    """R-47."""
    await sql.add(payload="permanent")
    runner = await make_runner(mixed)
    runner.on(AfterJobRun, lambda event: Skip() if event.error == "ValueError: no such thing" else None)
    seen = Seen(runner)
    assert await runner.process_available_jobs() == 1
    assert seen.names[-1] == "job_complete"
    assert await sql.count() == 0
    assert await sql.dead() == []


async def test_after_run_fail_counts_as_a_failure(make_runner: "MakeRunner", sql: "Sql") -> None:
    """R-47."""
    job_id = await sql.add(payload="good")
    runner = await make_runner(mixed)
    runner.on(AfterJobRun, lambda _: Fail("the result is odd"))
    seen = Seen(runner)
    assert await runner.process_available_jobs() == 1
    assert seen.counts["job_fail"] == 1
    assert seen.counts["job_complete"] == 0
    job = await sql.job(job_id)
    assert job is not None
    assert (job["attempts"], job["last_error"]) == (1, "JobFailed: the result is odd")


async def test_a_permanent_failure_is_told_exactly_once(make_runner: "MakeRunner", sql: "Sql") -> None:
    """R-47."""
    await sql.add(payload="fail", max_attempts=1)
    runner = await make_runner(mixed)
    seen = Seen(runner, "job_fail", "job_permanently_fail", "job_complete")
    await runner.process_available_jobs()
    await runner.process_available_jobs()
    assert seen.names == ["job_permanently_fail"]


async def test_observers_that_raise_harm_no_job_and_no_slot(
    make_runner: "MakeRunner", sql: "Sql", caplog: pytest.LogCaptureFixture
) -> None:
    await sql.add_many(30)
    runner = await make_runner(mixed)
    observed = [
        "job_fetch",
        "job_start",
        "job_complete",
        "local_queue_get_jobs_complete",
        "worker_start",
        "worker_shutdown",
    ]

    async def breaks(_: Any) -> None:
        await asyncio.sleep(0)
        raise SystemExit("trouble")

    for name in observed:
        runner.on(name, breaks)
    seen = Seen(runner, *observed)
    assert await runner.process_available_jobs() == 30
    assert runner.hooks.errors == seen.counts
    assert runner.hooks.errors["job_complete"] == 30
    assert await sql.count() == 0
    assert "breaks" in caplog.text


async def test_interceptors_that_raise_fail_that_job_and_can_say_whether_to_retry(
    make_runner: "MakeRunner", sql: "Sql"
) -> None:
    bug, refused, good = [await sql.add(payload=payload) for payload in ("bug", "refused", "good")]

    def check(event: BeforeJobRun) -> None:
        if event.payload == "bug":
            raise TypeError("a bug in the hook")
        if event.payload == "refused":
            raise ValidationFailed("not allowed")

    runner = await make_runner(mixed)
    runner.on(BeforeJobRun, check)
    assert await runner.process_available_jobs() == 3
    job = await sql.job(bug)
    assert job is not None
    assert "before_job_run handler" in job["last_error"]
    assert "raised TypeError: a bug in the hook" in job["last_error"]
    assert job["attempts"] < job["max_attempts"]  # its error would not be retried, but the job is not to blame
    (dead,) = await sql.dead()
    assert dead["original_job_id"] == refused
    assert "a bug in the hook" not in dead["last_error"]
    assert "not allowed" in dead["last_error"]
    assert await sql.job(good) is None


async def test_hooks_and_the_handler_of_one_run_share_context_variables(make_runner: "MakeRunner", sql: "Sql") -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")
    found: list[Any] = []

    @task("task")
    async def handler(payload: Any) -> None:
        found.append((payload, tenant.get()))

    def begin(event: BeforeJobRun) -> None:
        found.append(tenant.get())
        tenant.set(event.payload)

    runner = await make_runner(handler)
    runner.on(BeforeJobRun, begin).on(AfterJobRun, lambda _: found.append(tenant.get()))
    await sql.add(payload="a", priority=1)
    await sql.add(payload="b", priority=2)
    await runner.process_available_jobs()
    assert Counter(map(str, found)) == {"nobody": 2, "('a', 'a')": 1, "('b', 'b')": 1, "a": 1, "b": 1}


async def test_what_is_superseded_or_taken_away_is_told_as_it_was_written(run_worker: "RunWorker", sql: "Sql") -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    @task("task")
    async def waits(payload: Any) -> None:
        begun.set()
        await may_end.wait()
        if payload == "fail":
            raise OSError("late")

    async with run_worker(waits) as running:
        seen = Seen(running.runner, "job_complete", "job_fail", "job_permanently_fail")
        superseded = await sql.add(payload="fail", job_key="k")
        await begun.wait()
        await sql.add(payload="new", job_key="k", run_at=timedelta(days=1))
        may_end.set()
        await wait_until(lambda: seen.events, "the failure is told")
        event = seen.only("job_permanently_fail")
        assert (event.job.id, event.reason) == (superseded, "superseded")

        begun.clear()
        may_end.clear()
        taken = await sql.add(payload="good")
        await begun.wait()
        await sql.run("update graphile_worker._private_jobs set locked_by = 'somebody' where id = $1", taken)
        may_end.set()
        await wait_until(lambda: running.worker.releaser.stale, "its outcome met no claim")
        begun.clear()
        await sql.add(payload="good")
        await wait_until(lambda: len(seen.events) == 2, "the next job is told")
    assert [event.job.id == taken for event in seen.events] == [False, False]


async def test_without_a_dead_letter_queue_the_job_stays_and_the_event_says_so(
    make_runner: "MakeRunner", sql: "Sql"
) -> None:
    job_id = await sql.add(payload="permanent")
    runner = await make_runner(mixed, dlq_processor_interval=None)
    seen = Seen(runner)
    await runner.process_available_jobs()
    event = seen.only("job_permanently_fail")
    assert (event.job.id, event.reason, event.dlq_id) == (job_id, "permanent", None)
    assert await sql.count("attempts = max_attempts") == 1


async def test_a_refused_dead_letter_is_told_once(make_runner: "MakeRunner", sql: "Sql") -> None:
    await sql.run("alter table graphile_worker.backfill_dlq add check (task_identifier <> 'task')")
    await sql.add(payload="permanent")
    await sql.add(payload="good")
    runner = await make_runner(mixed)
    seen = Seen(runner, "job_complete", "job_fail", "job_permanently_fail")
    await runner.process_available_jobs()
    assert seen.counts == {"job_complete": 1, "job_permanently_fail": 1}
    assert seen.only("job_permanently_fail").dlq_id is None


async def test_slow_observers_hold_up_no_release(run_worker: "RunWorker", sql: "Sql") -> None:
    told, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: JobComplete) -> None:
        told.set()
        await may_go_on.wait()

    async with run_worker(mixed) as running:
        seen = Seen(running.runner.on(JobComplete, slow), "job_complete")
        await sql.add()
        await told.wait()
        await sql.add_many(50)
        await sql.run("select pg_notify('jobs:insert', '{\"count\": 50}')")
        await wait_until(lambda: running.worker.releaser.ran == 51, "all are released")
        assert await sql.count() == 0
        assert len(seen.events) == 1
        may_go_on.set()
    assert len(seen.events) == 51  # the stop waits for what is to be told


async def test_claiming_waits_while_thousands_are_to_be_told(
    run_worker: "RunWorker", sql: "Sql", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teller, "_BEHIND", 20)
    monkeypatch.setattr(teller, "_TOGETHER", 5)
    told, may_go_on = 0, asyncio.Event()

    async def slow(_: JobComplete) -> None:
        nonlocal told
        await may_go_on.wait()
        told += 1

    async with run_worker(mixed) as running:
        worker = running.worker
        running.runner.on(JobComplete, slow)
        await sql.add_many(5000)
        await sql.run("select pg_notify('jobs:insert', '{\"count\": 5000}')")
        await wait_until(lambda: worker.teller.is_behind and not worker.releaser.held, "it has stopped to claim")
        assert worker.releaser.is_stuck
        assert await sql.count() > 0
        may_go_on.set()
        await wait_until(lambda: told == 5000, "all are told")
    assert await sql.count() == 0


async def test_claims_and_what_goes_back_are_told(run_worker: "RunWorker", ahead: "Ahead", sql: "Sql") -> None:
    """R-49: of what is claimed ahead; the events of cron are tried with cron."""
    async with run_worker(ahead.task, queue_configs=[QueueConfig.default_queue(1)]) as running:
        ahead.lanes = running.worker.lanes
        seen = Seen(running.runner, "local_queue_get_jobs_complete", "local_queue_return_jobs", "job_complete")
        await sql.add_many(400)
        await sql.run("select pg_notify('jobs:insert', '{\"count\": 400}')")
        await ahead.blocked.wait()
        await wait_until(lambda: seen.counts["local_queue_return_jobs"], "what waited too long has gone back")
        ahead.may_end.set()
        await wait_until(lambda: seen.counts["job_complete"] == 400, "all are done")
    claimed = sum(event.jobs_count for event in seen.events if isinstance(event, LocalQueueGetJobsComplete))
    returned = sum(event.jobs_count for event in seen.events if isinstance(event, LocalQueueReturnJobs))
    assert returned >= 5
    assert claimed - returned == 400


async def test_handlers_may_be_registered_while_it_runs(run_worker: "RunWorker", sql: "Sql") -> None:
    async with run_worker(mixed) as running:
        await sql.add()
        await wait_until(lambda: running.worker.releaser.ran == 1, "the first is done")
        seen = Seen(running.runner)
        await sql.add()
        await wait_until(lambda: "job_complete" in seen.names, "the second is told")
    assert seen.names == ["job_fetch", "before_job_run", "job_start", "after_job_run", "job_complete"]


async def test_a_failure_event_carries_what_the_row_said(make_runner: "MakeRunner", sql: "Sql") -> None:
    """The verdict is the statement's: the row's attempts were changed while the job ran."""

    @task("task")
    async def shortens(ctx: WorkerContext) -> None:
        await sql.run("update graphile_worker._private_jobs set max_attempts = attempts where id = $1", ctx.job.id)
        raise OSError("down")

    await sql.add(max_attempts=5)
    runner = await make_runner(shortens)
    seen = Seen(runner, "job_fail", "job_permanently_fail")
    await runner.process_available_jobs()
    assert [type(event) for event in seen.events] == [JobPermanentlyFail]
    assert JobFail not in map(type, seen.events)
    assert seen.events[0].reason == "exhausted"
