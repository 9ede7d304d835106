"""Registering handlers, telling observers, asking interceptors: no database is involved."""

import asyncio
import dataclasses
import functools
import gc
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from backfill.errors import ConfigurationError, InvalidJob, JobScheduleFailed, JobScheduleSkipped
from backfill.hooks import (
    EVENTS,
    OBSERVATIONS,
    BeforeJobRun,
    BeforeJobSchedule,
    Continue,
    Event,
    Fail,
    FailureReason,
    FailWithBackoff,
    HookRegistry,
    JobComplete,
    JobFetch,
    JobRecovery,
    LocalQueueReturnJobs,
    Plugin,
    Reschedule,
    Skip,
    WorkerRecovered,
)
from backfill.model import Job, JobSpec, Priority

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
JOB = Job(
    id=1,
    task_identifier="t",
    payload_text='{"n": 1}',
    priority=0,
    run_at=NOW,
    attempts=1,
    max_attempts=3,
    created_at=NOW,
    updated_at=NOW,
)
RUN = BeforeJobRun(job=JOB, worker_id="w")
LEFT = LocalQueueReturnJobs(worker_id="w", jobs_count=3)
RECOVERY = JobRecovery(job=JOB, worker_id="w", previous_worker_id="v", reason=FailureReason.WORKER_CRASHED)


def test_every_event_is_a_frozen_class_with_a_name_in_snake_case() -> None:
    assert EVENTS["job_permanently_fail"].__name__ == "JobPermanentlyFail"
    for name, event in EVENTS.items():
        assert name.replace("_", "") == event.__name__.lower()
        assert dataclasses.is_dataclass(event)
        assert getattr(event, "__dataclass_params__").frozen  # noqa: B009 - mypy does not know the attribute
    assert {event.name for event in OBSERVATIONS} == EVENTS.keys() - {
        "before_job_run",
        "after_job_run",
        "before_job_schedule",
        "job_recovery",
    }


async def test_a_handler_is_registered_by_class_by_name_and_as_a_decorator() -> None:
    hooks, seen = HookRegistry(), []
    assert not hooks.wants(LocalQueueReturnJobs)

    @hooks.on(LocalQueueReturnJobs)
    def first(event: LocalQueueReturnJobs) -> None:
        seen.append(("first", event))

    @hooks.on("local_queue_return_jobs")
    async def second(event: LocalQueueReturnJobs) -> None:
        await asyncio.sleep(0)
        seen.append(("second", event))

    def third(event: LocalQueueReturnJobs) -> None:
        seen.append(("third", event))

    assert hooks.on(LocalQueueReturnJobs, third) is third
    assert hooks.wants(LocalQueueReturnJobs)
    assert not hooks.wants(JobComplete)
    await hooks.observe(LEFT)
    assert sorted(name for name, _ in seen) == ["first", "second", "third"]
    assert all(event is LEFT for _, event in seen)
    first(LEFT)  # a decorated function stays what it was
    assert len(seen) == 4


async def test_several_plugins_are_all_called() -> None:
    """R-45."""
    seen: list[tuple[int, int]] = []

    class Counter:
        def __init__(self, number: int) -> None:
            self.number = number

        def register(self, registry: HookRegistry) -> None:
            registry.on(LocalQueueReturnJobs, lambda event: seen.append((self.number, event.jobs_count)))

    hooks = HookRegistry([Counter(1), Counter(2)]).add_plugin(Counter(3))
    await hooks.observe(LEFT)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ("job_compleet", "did you mean job_complete"),
        ("JobComplete", "did you mean job_complete"),
        ("xyzzy", "there are worker_init, worker_start"),
        (Event, "is no event"),
        (Job, "is no event"),
        (None, "is no event"),
    ],
)
def test_an_unknown_event_is_refused_at_once(event: Any, says: str) -> None:
    for register in (lambda: HookRegistry().on(event, print), lambda: HookRegistry().on(event)):
        with pytest.raises(ConfigurationError, match=says):
            register()


def test_what_cannot_be_a_handler_is_refused_at_once() -> None:
    hooks = HookRegistry()

    def takes_none() -> None: ...

    def takes_two(a: Any, b: Any) -> None: ...

    def yields(event: Any) -> Any:
        yield event

    async def yields_too(event: Any) -> Any:
        yield event

    bad: list[Any] = [7, takes_none, takes_two, yields, yields_too]
    for handler in bad:
        with pytest.raises(ConfigurationError, match="job_complete"):
            hooks.on("job_complete", handler)
    assert not hooks.wants(JobComplete)
    hooks.on(JobComplete, functools.partial(takes_two, 1))
    hooks.on("job_complete", [].append)
    assert hooks.wants(JobComplete)


def test_what_is_no_plugin_is_refused_at_once() -> None:
    class Good(Plugin):
        def register(self, registry: HookRegistry) -> None: ...

    not_plugins: list[Any] = [object(), Good, None]
    for plugin, says in zip(not_plugins, ["is no plugin", r"write Good\(\)", "is no plugin"], strict=True):
        with pytest.raises(ConfigurationError, match=says):
            HookRegistry().add_plugin(plugin)
    HookRegistry().add_plugin(Good())


async def test_observers_start_together() -> None:
    hooks, met = HookRegistry(), asyncio.Barrier(3)
    for _ in range(3):

        @hooks.on(LocalQueueReturnJobs)
        async def meet(_: LocalQueueReturnJobs) -> None:
            await met.wait()

    async with asyncio.timeout(30):
        await hooks.observe(LEFT)


async def test_an_observers_exception_is_logged_and_counted_and_nobody_else_notices(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks, seen = HookRegistry(), list[Any]()

    def breaks(_: Any) -> None:
        raise ValueError("sync trouble")

    async def breaks_later(_: Any) -> None:
        await asyncio.sleep(0)
        raise SystemExit("async trouble")

    async def cancels(_: Any) -> None:
        raise asyncio.CancelledError

    for handler in (breaks, breaks_later, cancels, seen.append):
        hooks.on("local_queue_return_jobs", handler)
    await hooks.observe(LEFT)
    assert seen == [LEFT]
    assert hooks.errors == {"local_queue_return_jobs": 3}
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info is not None for record in said] == [True] * 3
    assert "breaks_later" in caplog.text
    assert "sync trouble" in caplog.text


async def test_a_cancellation_of_whoever_tells_goes_through() -> None:
    hooks, waiting = HookRegistry(), asyncio.Event()

    @hooks.on(LocalQueueReturnJobs)
    async def waits(_: LocalQueueReturnJobs) -> None:
        waiting.set()
        await asyncio.Event().wait()

    for extra in (0, 1):  # alone it is awaited inline, with others in a task
        if extra:
            hooks.on(LocalQueueReturnJobs, waits)
        telling = asyncio.create_task(hooks.observe(LEFT))
        await waiting.wait()
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling
        waiting.clear()
    assert not hooks.errors


async def test_interceptors_are_asked_in_order_and_the_first_answer_stands() -> None:
    hooks, asked = HookRegistry(), []

    def answer(name: str, with_: Any) -> None:
        async def handler(event: BeforeJobRun) -> Any:
            asked.append(name)
            assert event.payload == {"n": 1}
            return with_

        hooks.on(BeforeJobRun, handler)

    answer("a", None)
    answer("b", Continue())
    assert await hooks.ask_about_run(RUN) is None
    answer("c", Skip())
    answer("d", Fail("never asked"))
    asked.clear()
    assert await hooks.ask_about_run(RUN) == Skip()
    assert asked == ["a", "b", "c"]


async def test_an_interceptors_exception_and_what_is_no_answer_are_a_fail() -> None:
    def raises(_: Any) -> Any:
        raise KeyError("lost")

    for handler, says in [
        (raises, "raised KeyError: 'lost'"),
        (lambda _: True, "returned True, not None or one of Continue, Skip, Fail"),
        (lambda _: Reschedule(NOW), "returned Reschedule"),
        (lambda _: Continue({"n": 2}), "returned Continue"),
        (lambda _: Skip, "returned <class"),
    ]:
        hooks = HookRegistry()
        hooks.on("before_job_run", handler)
        answer = await hooks.ask_about_run(RUN)
        assert isinstance(answer, Fail)
        assert says in answer.message
        assert "before_job_run" in answer.message
        assert hooks.errors == {"before_job_run": 1}
    with pytest.raises(InvalidJob):
        Fail(7)  # type: ignore[arg-type] # that is the point


async def test_a_recovery_is_answered_in_its_own_way() -> None:
    for answer in (Reschedule(NOW, 3), FailWithBackoff(), Skip()):
        hooks = HookRegistry()
        hooks.on(JobRecovery, lambda _: None)
        hooks.on("job_recovery", lambda _, answer=answer: answer)
        assert await hooks.ask_about_recovery(RECOVERY) == answer
    hooks = HookRegistry()
    assert await hooks.ask_about_recovery(RECOVERY) is None
    hooks.on("job_recovery", lambda _: Fail("no such answer"))
    assert await hooks.ask_about_recovery(RECOVERY) is None
    assert hooks.errors == {"job_recovery": 1}
    with pytest.raises(InvalidJob, match="time zone"):
        Reschedule(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    with pytest.raises(InvalidJob, match="attempts"):
        Reschedule(NOW, -1)


async def test_a_payload_goes_through_the_chain_and_skip_ends_it() -> None:
    """R-48."""
    hooks, seen = HookRegistry(), []

    @hooks.on(BeforeJobSchedule)
    def add_two(event: BeforeJobSchedule) -> Continue:
        return Continue({**event.payload, "two": 2})

    @hooks.on(BeforeJobSchedule)
    async def look(event: BeforeJobSchedule) -> None:
        seen.append((event.identifier, event.spec.queue.name, event.spec.priority, event.payload))

    spec = JobSpec(queue="q", priority=Priority.EMERGENCY)
    assert await hooks.ask_before_adding("t", {"one": 1}, spec) == {"one": 1, "two": 2}
    assert seen == [("t", "q", -20, {"one": 1, "two": 2})]

    hooks.on(BeforeJobSchedule, lambda event: Continue(None) if event.payload.get("null") else None)
    assert await hooks.ask_before_adding("t", {"null": True}, spec) is None
    hooks.on(BeforeJobSchedule, lambda event: Skip() if event.identifier == "skip" else None)
    hooks.on(BeforeJobSchedule, lambda event: Fail("why") if event.identifier in {"fail", "skip"} else None)
    with pytest.raises(JobScheduleSkipped, match="'skip'"):
        await hooks.ask_before_adding("skip", {}, spec)
    with pytest.raises(JobScheduleFailed, match=r"'fail': why; nothing was added") as refused:
        await hooks.ask_before_adding("fail", {}, spec)
    assert (refused.value.identifier, refused.value.message) == ("fail", "why")


async def test_a_stream_ends_after_what_was_put_before_its_end() -> None:
    hooks = HookRegistry()
    assert not hooks.around_runs
    stream = hooks.subscribe(LocalQueueReturnJobs, "job_fetch")
    assert hooks.around_runs
    await hooks.observe(LEFT)
    await hooks.observe(WorkerRecovered(worker_id="w", dead_worker_ids=(), jobs_recovered=0))
    stream.end()
    await hooks.observe(JobFetch(job=JOB, worker_id="w"))
    assert [event async for event in stream] == [LEFT]
    assert [event async for event in stream] == []


async def test_a_slow_reader_loses_events_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    hooks = HookRegistry()
    everything = hooks.subscribe(buffer=2)
    for _ in range(5):
        await hooks.observe(LEFT)
    assert everything.dropped == 3
    assert caplog.text.count("slower than the worker") == 1
    assert await anext(everything) is LEFT
    await hooks.observe(LEFT)
    everything.end()
    assert [event async for event in everything] == [LEFT, LEFT]
    assert "lost 3 events in all" in caplog.text


async def test_a_reader_waits_for_the_next_event() -> None:
    hooks = HookRegistry()
    async with hooks.subscribe() as stream:
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        assert not reading.done()
        await hooks.observe(LEFT)
        assert await reading is LEFT
        await hooks.observe(LEFT)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_that_nobody_holds_is_forgotten() -> None:
    hooks = HookRegistry()
    async for _ in _told(hooks, LEFT):
        break
    gc.collect()
    assert not hooks.wants(LocalQueueReturnJobs)
    closed = hooks.subscribe()
    closed.close()
    hooks.on(JobComplete, print)
    assert not hooks.wants(LocalQueueReturnJobs)


def _told(hooks: HookRegistry, event: LocalQueueReturnJobs) -> Any:
    stream = hooks.subscribe()
    stream.put(event)
    return stream


def test_decisions_and_odd_buffers_cannot_be_subscribed_to() -> None:
    with pytest.raises(ConfigurationError, match="before_job_run is a decision"):
        HookRegistry().subscribe("before_job_run")
    with pytest.raises(InvalidJob, match="buffer"):
        HookRegistry().subscribe(buffer=0)
