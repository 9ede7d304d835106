"""Handlers at work: inline and in threads, with their context, their time limits, and whatever they raise."""

import asyncio
import contextvars
import threading
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.errors import InvalidInput
from backfill.model import JobSpec, Queue, RetryPolicy, task
from backfill.worker import QueueConfig, WorkerContext

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

    from backfill.client import BackfillClient

COLOUR = contextvars.ContextVar("COLOUR", default="none")
ONE_SLOT = (QueueConfig("only", 1),)
AT_ONCE = RetryPolicy(3, 0.0, 0.0)


class OddBaseError(BaseException):
    """Not an Exception, as some libraries' cancellations are."""


async def test_a_handler_gets_its_payload_and_its_context(
    sql: "Sql", make_runner: "MakeRunner", client: "BackfillClient"
) -> None:
    seen: list[Any] = []

    @task
    async def look(payload: dict[str, int], ctx: WorkerContext) -> None:
        seen.append((payload, ctx.job, ctx.worker_id, ctx.attempt, await ctx.pool.fetchval("select 7")))

    spec = JobSpec(priority=-4, queue=Queue.serial("q"), job_key="k", flags=["f"], timeout=timedelta(seconds=9))
    enqueued = (await client.enqueue(look, {"a": 1}, spec)).unwrap()
    runner = await make_runner(look)
    assert await runner.process_available_jobs() == 1
    ((payload, job, worker_id, attempt, seven),) = seen
    assert (payload, attempt, seven) == ({"a": 1}, 1, 7)
    assert runner.worker is not None
    assert worker_id == runner.worker.id
    assert worker_id.startswith("backfill-")
    assert len(worker_id) == len("backfill-") + 18
    assert (job.id, job.task_identifier, job.payload, job.priority) == (enqueued.id, "look", {"a": 1}, -4)
    assert (job.queue_name, job.key, job.flags, job.extras) == ("q", "k", {"f"}, enqueued.extras)
    assert (job.attempts, job.max_attempts, job.run_at) == (1, 8, enqueued.run_at)
    assert job.locked_by is not None
    assert job.locked_by.startswith(f"{worker_id}/")


async def test_a_handler_can_enqueue_in_its_own_transaction_and_without_a_payload(
    sql: "Sql", make_runner: "MakeRunner"
) -> None:
    seen: list[Any] = []

    @task
    async def child(payload: Any) -> None:
        seen.append(payload)

    @task
    async def parent(ctx: WorkerContext) -> None:
        async with ctx.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await ctx.enqueue(child, "never", connection=connection)
            await transaction.rollback()
            async with connection.transaction():
                await ctx.enqueue("child", None, JobSpec(priority=-1), connection=connection)
        await ctx.enqueue(child)

    await sql.add("parent")
    assert await (await make_runner(parent, child)).process_available_jobs() == 3
    assert seen == [None, {}]


async def test_context_variables_stay_within_a_job(sql: "Sql", make_runner: "MakeRunner") -> None:
    seen = []

    @task
    async def paint(payload: str) -> None:
        seen.append(COLOUR.get())
        COLOUR.set(payload)
        await asyncio.sleep(0)
        seen.append(COLOUR.get())

    @task
    def paint_in_thread(payload: str) -> None:
        seen.append(COLOUR.get())
        COLOUR.set(payload)

    for colour in ("red", "green"):
        await sql.add("paint", colour)
        await sql.add("paint_in_thread", colour)
    await (await make_runner(paint, paint_in_thread, queue_configs=ONE_SLOT)).process_available_jobs()
    assert Counter(seen) == Counter({"none": 4, "red": 1, "green": 1})
    assert COLOUR.get() == "none"


async def test_context_variables_of_jobs_that_run_at_once_do_not_mix(sql: "Sql", make_runner: "MakeRunner") -> None:
    all_set, wrong = asyncio.Event(), []
    started = 0

    @task
    async def paint(payload: dict[str, int]) -> None:
        nonlocal started
        COLOUR.set(str(payload["n"]))
        started += 1
        if started == 10:
            all_set.set()
        await all_set.wait()
        if COLOUR.get() != str(payload["n"]):
            wrong.append(payload)

    await sql.add_many(10, "paint")
    assert await (await make_runner(paint)).process_available_jobs() == 10
    assert wrong == []


async def test_plain_functions_run_in_threads_and_at_once(sql: "Sql", make_runner: "MakeRunner") -> None:
    together = threading.Barrier(4, timeout=30)
    threads = set()

    @task
    def meet(payload: dict[str, int], ctx: WorkerContext) -> None:
        together.wait()
        threads.add((threading.current_thread(), ctx.job.id, payload["n"]))

    made = await sql.add_many(4, "meet")
    runner = await make_runner(meet, queue_configs=[QueueConfig("only", 4)])
    assert await runner.process_available_jobs() == 4
    assert sorted((job_id, n) for _, job_id, n in threads) == list(zip(made, (1, 2, 3, 4), strict=True))
    assert len({thread for thread, _, _ in threads}) == 4
    assert threading.main_thread() not in {thread for thread, _, _ in threads}


def raising(error: BaseException) -> Any:
    @task("raises", retry_policy=AT_ONCE)
    async def raises() -> None:
        raise error

    return raises


def raising_in_thread(error: BaseException) -> Any:
    @task("raises", retry_policy=AT_ONCE)
    def raises() -> None:
        raise error

    return raises


@pytest.mark.parametrize("where", [raising, raising_in_thread])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"),
        SystemExit(3),
        asyncio.CancelledError(),
        OddBaseError("x"),
        BaseExceptionGroup("g", [SystemExit(1)]),
        StopIteration(1),
        StopAsyncIteration(1),
        TimeoutError("own"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_fails_its_job_alone(
    sql: "Sql", make_runner: "MakeRunner", where: Any, error: BaseException
) -> None:
    """R-21: what a panic is in Rust."""
    ran = []

    @task
    async def fine(payload: dict[str, int]) -> None:
        ran.append(payload["n"])

    bad = await sql.add("raises", priority=-1)
    await sql.add_many(3, "fine")
    runner = await make_runner(where(error), fine, queue_configs=ONE_SLOT)
    assert await runner.process_available_jobs() == 4
    assert sorted(ran) == [1, 2, 3]
    job = await sql.job(bad)
    assert job is not None
    assert (job["attempts"], job["locked_by"]) == (1, None)
    assert type(error).__name__ in job["last_error"]


async def test_a_handler_that_cancels_its_own_task_fails_alone_and_its_slot_goes_on(
    sql: "Sql", make_runner: "MakeRunner"
) -> None:
    ran = []

    @task("raises", retry_policy=AT_ONCE)
    async def raises() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)

    @task
    async def fine(payload: dict[str, int]) -> None:
        await asyncio.sleep(0)
        ran.append(payload["n"])

    bad = await sql.add("raises", priority=-1)
    await sql.add_many(3, "fine")
    runner = await make_runner(raises, fine, queue_configs=ONE_SLOT)
    assert await runner.process_available_jobs() == 4
    assert sorted(ran) == [1, 2, 3]
    job = await sql.job(bad)
    assert job is not None
    assert (job["attempts"], job["locked_by"]) == (1, None)
    assert "CancelledError" in job["last_error"]


async def test_errors_that_are_not_retryable_go_to_the_dead_letter_queue_at_once(
    sql: "Sql", make_runner: "MakeRunner"
) -> None:
    bad = await sql.add("raises", {"a": 1})
    assert await (await make_runner(raising(InvalidInput("no")))).process_available_jobs() == 1
    assert await sql.count() == 0
    (entry,) = await sql.dead()
    assert (entry["original_job_id"], entry["failure_reason"].split(": ", 1)[1]) == (bad, "InvalidInput: no")


async def test_a_payload_that_does_not_fit_is_dead_without_a_run(sql: "Sql", make_runner: "MakeRunner") -> None:
    ran = []

    @task
    async def typed(payload: list[int]) -> None:
        ran.append(payload)

    await sql.add("typed", ["x"])
    assert await (await make_runner(typed)).process_available_jobs() == 1
    assert ran == []
    (entry,) = await sql.dead()
    assert "MalformedData" in entry["failure_reason"]


@pytest.mark.parametrize("by", ["task", "spec"])
@pytest.mark.parametrize("swallows", [False, True], ids=["ends when cancelled", "swallows the cancellation"])
async def test_a_time_limit_cancels_and_is_a_retryable_failure(
    sql: "Sql", make_runner: "MakeRunner", client: "BackfillClient", by: str, swallows: bool
) -> None:
    short, long = timedelta(seconds=0.05), timedelta(hours=1)
    cancelled = 0

    @task("slow", timeout=short if by == "task" else long, retry_policy=AT_ONCE)
    async def slow() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            if not swallows:
                raise

    job = (await client.enqueue("slow", {}, None if by == "task" else JobSpec(timeout=short))).unwrap()
    assert await (await make_runner(slow)).process_available_jobs() == 1
    stored = await sql.job(job.id)
    assert stored is not None
    assert cancelled == 1
    assert (stored["attempts"], stored["locked_by"]) == (1, None)
    assert stored["last_error"] == "JobTimeoutError: the job took longer than its time limit of 0.05 s"


async def test_a_thread_that_outlives_its_time_limit_is_waited_for(
    sql: "Sql", make_runner: "MakeRunner", caplog: pytest.LogCaptureFixture
) -> None:
    may_end = threading.Event()

    @task("slow", timeout=timedelta(seconds=0.02), retry_policy=AT_ONCE)
    def slow() -> None:
        assert may_end.wait(30)

    job_id = await sql.add("slow")
    running = asyncio.create_task((await make_runner(slow)).process_available_jobs())
    try:
        async with asyncio.timeout(30):
            while "runs in a thread" not in caplog.text:
                await asyncio.sleep(0.005)
        job = await sql.job(job_id)
        assert job is not None
        assert job["locked_by"] is not None, "it still runs, and must not start elsewhere"
    finally:
        may_end.set()
    assert await running == 1
    job = await sql.job(job_id)
    assert job is not None
    assert job["locked_by"] is None
    assert job["last_error"].startswith("JobTimeoutError")


async def test_a_time_limit_that_is_not_reached_changes_nothing(sql: "Sql", make_runner: "MakeRunner") -> None:
    @task("quick", timeout=timedelta(hours=1))
    async def quick() -> None:
        await asyncio.sleep(0)

    await sql.add("quick")
    await (await make_runner(quick)).process_available_jobs()
    assert await sql.count() == 0
    assert await sql.dead() == []


async def test_a_handler_whose_claim_was_taken_away_is_cancelled_and_its_slot_goes_on(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """Also one that swallows the cancellation: the next job's failure must not be taken for a lost claim."""
    started, ended = asyncio.Event(), asyncio.Event()

    @task
    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()

    async with run_worker(stubborn, raising(RuntimeError("x")), queue_configs=ONE_SLOT) as running:
        job_id = await sql.add("stubborn")
        await started.wait()
        await sql.run("update graphile_worker._private_jobs set locked_by = 'somebody else' where id = $1", job_id)
        running.worker.claimer.compare()
        async with asyncio.timeout(30):
            await ended.wait()
        failing = await sql.add("raises", max_attempts=1)
        await until(sql.dead, "the next job has failed for good")
    job = await sql.job(job_id)
    assert job is not None
    assert job["locked_by"] == "somebody else"
    assert await sql.job(failing) is None
