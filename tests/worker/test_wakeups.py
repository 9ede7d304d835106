"""What makes a worker look for jobs. The poll is an hour away in all of these: whatever would need it, fails."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import JobSpec, Queue, RetryPolicy, task
from backfill.worker import QueueConfig, WorkerContext
from backfill.worker.maintenance import notified_count

if TYPE_CHECKING:
    from tests.worker.conftest import Ahead, RunWorker, Sql, Until

    from backfill.client import BackfillClient

FAST_AND_BULK = (QueueConfig.priority_queue("fast", 2, -32768, -1), QueueConfig.priority_queue("bulk", 3, 0, 32767))
SLOW = RetryPolicy(3, 0.2, 0.2, 1.0, 0.0)


class Count:
    """A task that counts its runs."""

    def __init__(self, name: str = "task") -> None:
        self.payloads: list[Any] = []

        @task(name)
        async def count(payload: Any) -> None:
            self.payloads.append(payload)

        self.task = count


async def test_a_job_starts_by_notification(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    """R-53."""
    count = Count()
    async with run_worker(count.task) as running:
        claimer = running.worker.claimer
        assert (claimer.notified, claimer.polls) == (0, 0)
        for n in range(5):
            await sql.add("task", n)
            await until(lambda n=n: count.payloads == list(range(n + 1)), "it has run")
        assert claimer.notified == 5
        assert claimer.polls == 0


async def test_jobs_that_wait_when_the_worker_starts_run_at_once(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    count = Count()
    await sql.add_many(300)
    async with run_worker(count.task, ready=False) as running:
        await until(lambda: len(count.payloads) == 300, "all have run")
        assert running.worker.claimer.polls == 0


async def test_a_scheduled_job_starts_when_it_is_due(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    """One that was there before the worker, and one that came later, for which no notification tells when it is due."""
    count = Count()
    early = await sql.add("task", "early", run_at=timedelta(seconds=0.5))
    async with run_worker(count.task) as running:
        await until(lambda: count.payloads == ["early"], "the first has run")
        late = await sql.add("task", "late", run_at=timedelta(seconds=1))
        await until(lambda: count.payloads == ["early", "late"], "the second has run")
        assert running.worker.claimer.polls == 0
    assert early < late


async def test_scheduled_jobs_do_not_start_early(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    seen: list[timedelta] = []

    @task("task")
    async def late(ctx: WorkerContext) -> None:
        seen.append(await ctx.pool.fetchval("select now()") - ctx.job.run_at)

    async with run_worker(late):
        for n in range(10):
            await sql.add(run_at=timedelta(seconds=0.05 * n))
        await until(lambda: len(seen) == 10, "all have run")
    assert min(seen) >= timedelta(0)


async def test_a_thousand_jobs_of_one_serial_queue_run_one_at_a_time_in_order(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    order: list[int] = []
    at_once = Counter[str]()

    @task("step")
    async def step(payload: dict[str, int]) -> None:
        at_once["now"] += 1
        assert at_once["now"] == 1
        await asyncio.sleep(0)
        order.append(payload["n"])
        at_once["now"] -= 1

    async with run_worker(step) as running:
        await sql.add_many(1000, "step", queue="'q'", run_at="now()")
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(order) == 1000, "all have run", limit=90)
        assert running.worker.claimer.polls == 0
    assert order == list(range(1, 1001))
    assert await sql.locks() == (0, 0)
    assert await sql.dead() == []


@pytest.mark.parametrize("own_lane", [False, True])
async def test_all_queues_begin_although_the_first_has_a_long_backlog(
    sql: "Sql", run_worker: "RunWorker", until: "Until", own_lane: bool
) -> None:
    """No free slot stays idle while a queue that nobody holds has a due job, though it comes far behind another's."""
    running_now: set[str | None] = set()
    may_end = asyncio.Event()

    @task("hold")
    async def hold(ctx: WorkerContext) -> None:
        running_now.add(ctx.job.queue_name)
        await may_end.wait()

    lanes = [QueueConfig.default_queue(5), *([QueueConfig.named_queue("q3")] if own_lane else [])]
    for queue in ("q1", "q2", "q3", "q4"):
        await sql.add_many(40, "hold", queue=f"'{queue}'", run_at="now()")
    async with run_worker(hold, ready=False, queue_configs=lanes) as running:
        await until(lambda: len(running_now) == 4, "one job of each queue runs")
        assert running.worker.claimer.polls == 0
        await sql.run("delete from graphile_worker._private_jobs where locked_by is null")
        may_end.set()


async def test_fast_jobs_start_while_every_bulk_slot_is_held_for_ever(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    count = Count("quick")
    held: set[int] = set()

    @task("never")
    async def never(ctx: WorkerContext) -> None:
        held.add(ctx.job.id)
        await asyncio.Event().wait()

    await sql.add_many(10_000, "never")
    async with run_worker(
        count.task, never, queue_configs=FAST_AND_BULK, ready=False, shutdown_timeout=timedelta(seconds=2)
    ) as running:
        await until(lambda: len(held) == 3, "all bulk slots are held")
        for n in range(20):
            await sql.add("quick", n, priority=-1)
        await until(lambda: len(count.payloads) == 20, "the fast ones have run")
        assert (len(held), running.worker.claimer.polls) == (3, 0)
    assert await sql.locks() == (0, 0)
    assert await sql.count("attempts = 0") == 10_000


async def test_an_urgent_job_overtakes_bulk_work(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    order: list[Any] = []
    urgent_added = asyncio.Event()

    @task("task")
    async def note(payload: Any) -> None:
        order.append(payload)
        if order == ["first"]:
            await urgent_added.wait()

    async with run_worker(note, queue_configs=[QueueConfig("only", 1)]):
        await sql.add("task", "first")
        await until(lambda: order == ["first"], "the slot is taken")
        await sql.add_many(5)
        await sql.add("task", "urgent", priority=-20)
        urgent_added.set()
        await until(lambda: len(order) == 7, "all have run")
    assert order[1] == "urgent"


async def test_what_was_claimed_ahead_goes_back_when_a_handler_takes_unexpectedly_long(
    sql: "Sql", run_worker: "RunWorker", until: "Until", ahead: "Ahead"
) -> None:
    """R-55: what a local queue's ttl is for."""
    await sql.add_many(4_000)
    async with run_worker(ahead.task, queue_configs=[QueueConfig("only", 1)], ready=False) as running:
        ahead.lanes += running.worker.lanes
        async with asyncio.timeout(30):
            await ahead.blocked.wait()
        await until(lambda: len(running.worker.releaser.held) == 1, "all but the one that runs went back")
        assert await sql.locks() == (1, 0)
        assert await sql.count("locked_by is null and attempts <> 0") == 0
        ahead.may_end.set()
        await until(lambda: none_left(sql), "they all run in the end")


async def none_left(sql: "Sql") -> bool:
    return await sql.count() == 0


async def test_neither_keyed_nor_serial_jobs_are_claimed_ahead(
    sql: "Sql", run_worker: "RunWorker", until: "Until", ahead: "Ahead"
) -> None:
    """They are claimed one by one when they are the next to run; in between the others are claimed ahead."""
    await sql.add_many(
        4_000, key="case when n % 70 = 0 then 'k' || n end", queue="case when n % 90 = 0 then 'q' || n end"
    )
    async with run_worker(ahead.task, queue_configs=[QueueConfig("only", 1)], ready=False) as running:
        ahead.lanes += running.worker.lanes
        ahead.may_end.set()
        await until(lambda: none_left(sql), "they all run", limit=60)
    assert ahead.most > 0
    assert ahead.wrong == 0


@pytest.mark.parametrize("extra", [{}, {"job_key": "k"}, {"queue_name": "q"}], ids=["plain", "keyed", "queued"])
async def test_an_urgent_job_overtakes_what_was_claimed_ahead(
    sql: "Sql", run_worker: "RunWorker", until: "Until", ahead: "Ahead", extra: dict[str, Any]
) -> None:
    """The only slot is taken, and jobs wait for it: a notification has the worker claim what is to come before these."""
    await sql.add_many(4_000)
    async with run_worker(ahead.task, queue_configs=[QueueConfig("only", 1)], ready=False) as running:
        ahead.lanes += running.worker.lanes
        async with asyncio.timeout(30):
            await ahead.blocked.wait()
        (lane,) = running.worker.lanes
        urgent = await sql.add("task", priority=-20, **extra)
        await until(lambda: urgent in running.worker.releaser.held, "the urgent one was claimed")
        if lane.buffered:  # or what had waited for too long went back meanwhile, and the urgent one with it
            assert lane._buffer[-1][-1].id == urgent
        ahead.may_end.set()
        await until(lambda: none_left(sql), "they all run in the end")


@pytest.mark.parametrize("payload", ['{"r":0.5,"count":0}', '{"r":0.5,"count":-1}'])
async def test_notifications_of_nothing_are_ignored(
    sql: "Sql", run_worker: "RunWorker", until: "Until", payload: str
) -> None:
    count = Count()
    async with run_worker(count.task) as running:
        claimer = running.worker.claimer
        lanes = running.worker.lanes
        await until(
            lambda: claimer.claims > 1 and not any(lane.hungry for lane in lanes), "it has asked what is due, too"
        )
        await until(lambda: claimer._due_at is None and not claimer._ask_due, "nothing else would wake the worker")
        await sql.add_many(1)  # silently
        claims = claimer.claims
        for _ in range(20):
            await sql.run("select pg_notify('jobs:insert', $1)", payload)
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(count.payloads) == 1, "the last one was heard")
        assert claimer.notified == 1
        assert claimer.claims - claims <= 2


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        ("", 1),
        ("x", 1),
        ("[]", 1),
        ("3", 1),
        ("{}", 1),
        ('{"count": 7}', 7),
        ('{"count": -1}', -1),
        ('{"count": 0}', 0),
        ('{"count": "3"}', 1),
        ('{"count": 1.5}', 1),
        ('{"count": null}', 1),
        ('{"count": 1', 1),
        ("[" * 7999, 1),
        ('{"a":' * 1500, 1),
    ],
)
def test_what_notifications_say(payload: str, count: int) -> None:
    assert notified_count(payload) == count


async def test_a_retry_has_its_own_timer(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    seen: list[int] = []
    may_fail = asyncio.Event()

    @task("task", retry_policy=SLOW)
    async def third_time_lucky(ctx: WorkerContext) -> None:
        seen.append(ctx.attempt)
        await may_fail.wait()
        if ctx.attempt < 3:
            raise RuntimeError("again")

    async with run_worker(third_time_lucky) as running:
        await sql.add(max_attempts=3)
        await until(lambda: seen == [1], "it runs")
        claimer = running.worker.claimer
        await until(lambda: claimer._due_at is None and not claimer._ask_due, "nothing else would wake the worker")
        began = time.monotonic()
        may_fail.set()
        await until(lambda: seen == [1, 2, 3], "it was tried three times")
        assert time.monotonic() - began >= 0.4, "no sooner than its policy says"
        assert claimer.polls == 0
        await until(lambda: none_left(sql), "it is done")


async def test_a_job_of_a_lane_s_own_queue_starts_by_notification_however_many_others_wait(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until"
) -> None:
    count = Count()
    lanes = [QueueConfig.named_queue("own", 2), QueueConfig.priority_queue("rest", 1, 0, 32767)]
    async with run_worker(count.task, queue_configs=lanes) as running:
        await sql.add_many(5_000, "not ours", run_at="now()")
        for n in range(30):
            await client.enqueue("task", n, JobSpec(queue=Queue.serial("own"), priority=-5 * (n % 2)))
        await until(lambda: len(count.payloads) == 30, "all have run")
        assert running.worker.claimer.polls == 0


async def test_a_task_whose_row_was_made_by_an_open_transaction_when_the_worker_started(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """The worker can't see the row that keeps it from making one; it must learn the id as soon as there is one."""
    count, fresh = Count(), Count("fresh")
    transaction = other.connection.transaction()
    await transaction.start()
    await other.add("fresh")
    async with run_worker(count.task, fresh.task, ready=False):
        await until(lambda: blocked_by(sql, other), "the worker waits for the transaction")
        await transaction.commit()
        await until(lambda: len(fresh.payloads) == 1, "the job has run")


async def blocked_by(sql: "Sql", other: "Sql") -> bool:
    return bool(
        await sql.value(
            "select exists (select from pg_stat_activity where $1 = any(pg_blocking_pids(pid)))",
            other.connection.get_server_pid(),
        )
    )
