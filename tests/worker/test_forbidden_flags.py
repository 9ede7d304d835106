"""Jobs with a forbidden flag stay where they are; all others run as if those were not there (C-043, C-044, C-045, R-36)."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import JobSpec, Queue, Task, task
from backfill.worker import QueueConfig
from backfill.worker.forbidden import ForbiddenFlagsError, flags_now

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, MakeRunner, RunWorker, Sql, Until

    from backfill.client import BackfillClient


class Noting:
    """A task that notes its payloads."""

    def __init__(self) -> None:
        self.ran: list[Any] = []

        @task("task")
        async def note(payload: Any) -> None:
            self.ran.append(payload)

        self.task: Task[Any] = note


@pytest.fixture
def noting() -> Noting:
    return Noting()


async def asked_later() -> list[str]:
    await asyncio.sleep(0)
    return ["b"]


async def none_later() -> None:
    await asyncio.sleep(0)


async def test_flags_are_stored_as_an_object_of_true_values(sql: "Sql", client: "BackfillClient") -> None:
    """C-043, R-36."""
    await client.enqueue("task", 1, JobSpec(flags={"a", "b"}))
    stored = await sql.value("select flags::text from graphile_worker._private_jobs")
    assert json.loads(stored) == {"a": True, "b": True}


@pytest.mark.parametrize(
    "forbidden",
    [["b"], ("b", "unknown"), {"b"}, lambda: ["b"], lambda: iter(("b",)), asked_later],
    ids=["list", "tuple", "set", "function", "iterator", "async function"],
)
async def test_a_job_with_a_forbidden_flag_is_left_unrun_and_others_run(
    sql: "Sql", make_runner: "MakeRunner", noting: Noting, forbidden: Any
) -> None:
    """C-044, R-36."""
    left = await sql.add("task", 1, flags=["a", "b"])
    await sql.add("task", 2, flags=["a"])
    await sql.add("task", 3)
    runner = await make_runner(noting.task, forbidden_flags=forbidden)
    assert await runner.process_available_jobs() == 2
    assert sorted(noting.ran) == [2, 3]
    job = await sql.job(left)
    assert job is not None
    assert (job["attempts"], job["locked_at"]) == (0, None)


@pytest.mark.parametrize(
    "forbidden",
    [None, [], ["unknown"], lambda: None, list, lambda: ["unknown"], none_later],
    ids=["none", "empty", "unknown", "gives none", "gives an empty list", "gives unknown", "gives none later"],
)
async def test_no_flag_an_empty_list_and_unknown_flags_block_nothing(
    sql: "Sql", make_runner: "MakeRunner", noting: Noting, forbidden: Any
) -> None:
    """C-045."""
    await sql.add("task", 1, flags=["a"])
    await sql.add("task", 2)
    runner = await make_runner(noting.task, forbidden_flags=forbidden)
    assert await runner.process_available_jobs() == 2


async def test_jobs_that_are_left_hold_up_nobody_however_many_are_in_front(
    sql: "Sql", make_runner: "MakeRunner", noting: Noting
) -> None:
    slow = """'{"slow": true}'::jsonb"""
    await sql.add_many(1000, flags=slow, priority="-5")
    await sql.add_many(1000, flags=slow, priority="-5", queue="'q' || n % 3")
    await sql.add("task", "free", priority=5)
    await sql.add("task", "queued", priority=5, queue_name="q1")
    runner = await make_runner(noting.task, forbidden_flags=["slow"], queue_configs=[QueueConfig("only", 1)])
    assert await runner.process_available_jobs() == 2
    assert sorted(noting.ran) == ["free", "queued"]
    assert await sql.count("attempts = 0") == 2000


async def test_of_a_queues_jobs_of_one_time_the_first_that_is_allowed_runs(
    sql: "Sql", make_runner: "MakeRunner", noting: Noting
) -> None:
    slow = """case when n < 3 then '{"slow": true}'::jsonb end"""
    await sql.add_many(4, flags=slow, queue="'q'", run_at="timestamptz '2020-01-01 00:00+00'")
    runner = await make_runner(noting.task, forbidden_flags=["slow"])
    assert await runner.process_available_jobs() == 2
    assert noting.ran == [{"n": 3}, {"n": 4}]


async def test_a_queue_of_which_nothing_is_allowed_is_none_to_look_behind(sql: "Sql", claims: "Claims") -> None:
    await sql.add("task", 1, queue_name="q", flags=["slow"])
    await sql.add("task", 2, queue_name="r", flags=["other"])
    tasks = await claims.task_ids(["task"])
    found = await claims.sql.named("free_queues_without_flags", tasks, [], [], 10, ["slow"])
    names = await sql.rows("select id from graphile_worker._private_job_queues where queue_name = 'r'")
    assert [row["queue_id"] for row in found] == [row["id"] for row in names]


async def test_the_lane_of_a_queue_passes_by_them_too(sql: "Sql", make_runner: "MakeRunner", noting: Noting) -> None:
    await sql.add("task", 1, queue_name="q", flags=["slow"])
    await sql.add("task", 2, queue_name="q")
    lane = QueueConfig.named_queue("q")
    runner = await make_runner(noting.task, forbidden_flags=["slow"], queue_configs=[lane])
    assert await runner.process_available_jobs() == 1
    assert noting.ran == [2]


async def test_the_function_is_asked_once_for_each_claim_and_what_it_says_holds_at_once(
    sql: "Sql", run_worker: "RunWorker", noting: Noting, until: "Until"
) -> None:
    asked = 0
    now: list[str] = ["slow"]

    def forbidden() -> list[str]:
        nonlocal asked
        asked += 1
        return now

    async with run_worker(noting.task, forbidden_flags=forbidden) as running:
        await sql.add("task", 1, flags=["slow"])
        await sql.add("task", 2)
        await until(lambda: noting.ran == [2], "the other has run")
        now.clear()
        await sql.add("task", 3)
        await until(lambda: sorted(noting.ran) == [1, 2, 3], "no flag is forbidden any more")
        # asked for claims, and for looks behind queues that are held
        assert asked <= running.worker.claimer.claims + running.worker.claimer.polls


@pytest.mark.parametrize("wrong", [ValueError("no flags today"), "a text", ["backfill:retry=fast"], [7]])
async def test_nothing_is_claimed_while_the_function_fails(
    sql: "Sql",
    run_worker: "RunWorker",
    until: "Until",
    caplog: pytest.LogCaptureFixture,
    wrong: Any,
) -> None:
    noting = Noting()
    asked, mended = 0, False

    async def forbidden() -> Any:
        nonlocal asked
        asked += 1
        if mended:
            return []
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    caplog.set_level(logging.WARNING)
    job = await sql.add("task", 1)
    async with run_worker(noting.task, forbidden_flags=forbidden, ready=False) as running:
        await until(lambda: asked >= 3, "it is asked again")
        row = await sql.job(job)
        assert row is not None
        assert (row["attempts"], row["locked_at"]) == (0, None)
        assert not running.task.done()
        mended = True
        await until(lambda: noting.ran == [1], "the job has run")
    said = [record for record in caplog.records if "forbidden_flags" in record.getMessage()]
    assert said
    assert said[0].exc_info is not None
    assert "no job is claimed until it answers" in said[0].getMessage()


async def test_a_function_that_hangs_ends_with_the_stop(
    sql: "Sql", run_worker: "RunWorker", noting: Noting, until: "Until"
) -> None:
    hangs = asyncio.Event()

    async def forbidden() -> list[str]:
        hangs.set()
        await asyncio.Event().wait()
        return []

    await sql.add("task", 1)
    async with run_worker(noting.task, forbidden_flags=forbidden, ready=False) as running:
        await hangs.wait()
        await running.end()
    assert noting.ran == []


async def test_a_function_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill.worker.forbidden._PATIENCE", 0.0)

    async def forbidden() -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ForbiddenFlagsError, match="took too long"):
        await flags_now(forbidden)


async def test_retries_of_a_job_that_is_now_forbidden_wait(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    ran = 0

    @task("task")
    async def fail() -> None:
        nonlocal ran
        ran += 1
        raise OSError("once")

    await client.enqueue("task", None, JobSpec(queue=Queue.serial("q"), flags={"slow"}))
    forbidden: Callable[[], list[str]] = lambda: ["slow"] if ran else []  # noqa: E731 - as users write it
    runner = await make_runner(fail, forbidden_flags=forbidden)
    assert await runner.process_available_jobs() == 1
    await sql.run("update graphile_worker._private_jobs set run_at = now() - interval '1 s'")
    assert await runner.process_available_jobs() == 0
    assert await sql.locks() == (0, 0)
