"""Workers that go on until they are stopped: C-021, R-18, R-42, R-43, R-50, R-51, R-57, X-12, X-13.

The poll is an hour away in all of these: whatever would need it, fails.
"""

import asyncio
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, JobSpec, QueueConfig, RetryPolicy, task

if TYPE_CHECKING:
    from tests.worker.conftest import RunWorker, Sql, Until


class Note:
    """A task that notes the payloads that it was run with."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []

        @task("task")
        async def note(payload: Any) -> None:
            self.payloads.append(payload)

        self.task = note


async def test_jobs_run_as_they_come_until_a_stop(
    sql: "Sql", client: BackfillClient, run_worker: "RunWorker", until: "Until"
) -> None:
    """C-021, R-18, R-57: three slots; a stop ends it cleanly, and it has left the process's signals alone."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    note = Note()
    async with run_worker(note.task, queue_configs=[QueueConfig("three", 3)]) as running:
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
        for number in range(12):
            await client.enqueue("task", number)
            await until(lambda number=number: number in note.payloads, "it has run")
        assert await running.end() == 0
        assert running.task.done()
    assert sorted(note.payloads) == list(range(12))
    assert (await sql.count(), await sql.locks()) == (0, (0, 0))


@pytest.mark.parametrize("count", [1, 5, 20, 100])
@pytest.mark.parametrize("slots", [1, 10])
async def test_any_number_of_waiting_jobs_and_one_more(
    sql: "Sql", run_worker: "RunWorker", until: "Until", count: int, slots: int
) -> None:
    """R-50: whatever is claimed ahead; and one that comes when nothing was left."""
    note = Note()
    await sql.add_many(count)
    async with run_worker(note.task, ready=False, queue_configs=[QueueConfig("only", slots)]):
        await until(lambda: len(note.payloads) == count, "all have run")
        await until(sql_is_empty(sql), "all are released")
        await sql.add("task", {"n": 0})
        await until(lambda: len(note.payloads) == count + 1, "the last has run")
    assert sorted(payload["n"] for payload in note.payloads) == list(range(count + 1))


async def test_as_many_run_at_once_as_there_are_slots(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    """R-51, without a clock: ten jobs of which five wait for each other can only end if five run at once."""
    barrier, seen = asyncio.Barrier(5), Counter[str]()

    @task("task")
    async def meet() -> None:
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        await barrier.wait()
        seen["now"] -= 1

    await sql.add_many(10)
    async with run_worker(meet, ready=False, queue_configs=[QueueConfig("five", 5)]):
        await until(sql_is_empty(sql), "all have run")
    assert seen["most"] == 5


async def test_outcomes_of_one_moment_in_a_stop_are_all_written(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """R-42: ten jobs that end together while the worker stops."""
    may_end, started = asyncio.Event(), 0

    @task("task")
    async def wait() -> None:
        nonlocal started
        started += 1
        await may_end.wait()

    await sql.add_many(10)
    async with run_worker(wait, ready=False, queue_configs=[QueueConfig("ten", 10)]) as running:
        await until(lambda: started == 10, "all run")
        running.stop.set()
        await until(lambda: running.worker.claimer.stopping, "it stops")
        may_end.set()
        assert await running.end() == 0
        assert running.worker.releaser.ran == 10
    assert await sql.count() == 0


async def test_failures_of_one_moment_keep_what_is_theirs(
    sql: "Sql", client: BackfillClient, run_worker: "RunWorker", until: "Until"
) -> None:
    """R-43: retries and failures for good and completions, in queues and without, that end at the same time."""
    barrier = asyncio.Barrier(12)

    @task("task", retry_policy=RetryPolicy(9, 3600, 3600, 1.0, 0.0))
    async def ends(payload: str) -> None:
        await barrier.wait()
        if payload != "completes":
            raise RuntimeError(payload)

    batch: list[Any] = [
        ("task", what, JobSpec(max_attempts=limit, queue=queue and f"{what} {n}"))
        for n, queue in enumerate((None, "q", None, "q"))
        for what, limit in (("completes", 3), ("retries", 4), ("for good", 1))
    ]
    await client.enqueue_many(batch)
    async with run_worker(ends, ready=False, queue_configs=[QueueConfig("twelve", 12)]) as running:
        await until(lambda: running.worker.releaser.ran == 12, "all are released")
        assert await sql.locks() == (0, 0)
    rows = await sql.rows("select attempts, max_attempts, last_error, payload::text from graphile_worker._private_jobs")
    assert {tuple(row) for row in rows} == {(1, 4, "RuntimeError: retries", '"retries"')}
    assert len(rows) == 4
    dead = await sql.dead()
    assert [(entry["failure_count"], entry["max_attempts"], entry["payload"]) for entry in dead] == [
        (1, 1, '"for good"')
    ] * 4


async def test_a_queue_of_many_instant_jobs_needs_no_poll(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    """X-12: counted, not timed: each job had to be claimed by itself, and no claim waited for a poll."""
    jobs, note = 200, Note()
    async with run_worker(note.task) as running:
        claimer = running.worker.claimer
        before = claimer.claims
        await sql.add_many(jobs, queue="'q'", run_at="now()")
        await sql.run("select pg_notify('jobs:insert', '{\"count\": 1}')")
        await until(lambda: len(note.payloads) == jobs, "all have run")
        assert claimer.polls == 0
        assert claimer.claims - before >= jobs
    assert [payload["n"] for payload in note.payloads] == list(range(1, jobs + 1))


@pytest.mark.parametrize("queue", [None, "'q'"])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_stop_leaves_no_finished_job_locked(
    sql: "Sql", run_worker: "RunWorker", until: "Until", queue: str | None, fails: bool
) -> None:
    """X-13: the stop comes in the last step of a handler, so that its outcome is not yet written."""
    stop: asyncio.Event | None = None
    ended: list[int] = []

    @task("task", retry_policy=RetryPolicy(5, 0, 0, 1.0, 0.0))
    async def last(payload: dict[str, int]) -> None:
        ended.append(payload["n"])
        assert stop is not None
        stop.set()
        if fails:
            raise RuntimeError("at the very end")

    rounds = added = 0
    while rounds < 5:
        added += len(
            await sql.add_many(10, **({"queue": queue} if queue else {}))
        )  # so that none is left without a job
        before = len(ended)
        async with run_worker(last, ready=False, queue_configs=[QueueConfig("three", 3)]) as running:
            stop = running.stop
            await running.task
        rounds += 1
        assert len(ended) > before
        assert await sql.locks() == (0, 0)
        if not fails:
            assert await sql.count() == added - len(ended)
        else:
            assert await sql.value("select sum(attempts) from graphile_worker._private_jobs") == len(ended)


def sql_is_empty(sql: "Sql") -> Any:
    async def empty() -> bool:
        return await sql.count() == 0

    return empty
