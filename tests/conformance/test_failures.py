"""What a failure leaves behind: C-007, C-008, R-19 to R-22, X-11."""

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill import task

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, Sql

PAST_DUE = "update graphile_worker._private_jobs set run_at = now()"


@task("task")
async def fails() -> None:
    raise RuntimeError("no such luck")


async def test_a_failure_and_the_next(sql: "Sql", make_runner: "MakeRunner") -> None:
    """C-007, C-008, R-19, R-20: e^1, then e^2 seconds later; not tried before; after the last attempt never again."""
    job_id = await sql.add(queue_name="q", max_attempts=3)
    runner = await make_runner(fails, dlq_processor_interval=None)
    for attempt in (1, 2, 3):
        before = await sql.value("select clock_timestamp()")
        assert await runner.process_available_jobs() == 1
        after = await sql.value("select clock_timestamp()")
        job = await sql.job(job_id)
        assert job is not None
        assert (job["attempts"], job["max_attempts"], job["locked_by"]) == (attempt, 3, None)
        assert "no such luck" in job["last_error"]
        assert await sql.locks() == (0, 0)
        if attempt < 3:
            wait = timedelta(seconds=math.exp(attempt))
            assert before + wait <= job["run_at"] <= after + wait
            assert await runner.process_available_jobs() == 0
        await sql.run(PAST_DUE)
    assert await runner.process_available_jobs() == 0
    assert not await sql.value("select is_available from graphile_worker._private_jobs")


async def test_the_default_of_25_attempts_is_kept(sql: "Sql", make_runner: "MakeRunner") -> None:
    """C-007, R-19: of a job that was added by the SQL function."""
    job_id = await sql.add()
    await (await make_runner(fails)).process_available_jobs()
    job = await sql.job(job_id)
    assert job is not None
    assert (job["attempts"], job["max_attempts"], job["is_available"]) == (1, 25, True)


@pytest.mark.parametrize("queue_name", [None, "q"])
async def test_a_worker_leaves_what_is_not_its_own_bookkeeping(
    sql: "Sql", make_runner: "MakeRunner", queue_name: str | None
) -> None:
    """Section 2.7 of the contract: a run and its failure move neither updated_at nor revision nor created_at."""
    job_id = await sql.add(queue_name=queue_name, job_key="k", flags=["f"])
    before = dict(await sql.job(job_id) or {})
    await (await make_runner(fails)).process_available_jobs()
    after = dict(await sql.job(job_id) or {})
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"attempts", "last_error", "run_at"}


@pytest.mark.parametrize("dead_letters", [True, False])
async def test_a_failure_for_good_frees_the_queue(sql: "Sql", make_runner: "MakeRunner", dead_letters: bool) -> None:
    """R-22: and the next of the queue runs."""
    ran: list[Any] = []

    @task("next")
    async def following() -> None:
        ran.append(1)

    job_id = await sql.add(queue_name="q", max_attempts=1)
    await sql.add("next", queue_name="q")
    settings: dict[str, Any] = {} if dead_letters else {"dlq_processor_interval": None}
    assert await (await make_runner(fails, following, **settings)).process_available_jobs() == 2
    assert ran == [1]
    assert await sql.locks() == (0, 0)
    job = await sql.job(job_id)
    if dead_letters:
        assert job is None
        assert [entry["original_job_id"] for entry in await sql.dead()] == [job_id]
    else:
        assert job is not None
        assert (job["attempts"], job["locked_at"], job["locked_by"]) == (1, None, None)


class OddError(Exception):
    """Its text is no text, or cannot be made at all."""

    def __str__(self) -> str:
        return self.args[0]()  # type: ignore[no-any-return] # that is what is odd about it


def raises() -> str:
    raise RuntimeError("no text")


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a\0b\x00"),
        RuntimeError("\ud800 alone"),
        RuntimeError(),
        RuntimeError(None, 7, {"x": 1}),
        RuntimeError("x" * 10_000_000),
        OddError(lambda: 5),
        OddError(raises),
        BaseExceptionGroup("g\0", [RuntimeError("\0")]),
    ],
    ids=["NUL", "surrogate", "empty", "no text", "long", "a number", "raises", "group"],
)
async def test_no_message_leaves_a_job_locked(
    sql: "Sql", make_runner: "MakeRunner", error: BaseException, final: bool
) -> None:
    """X-11: in a serial queue, as a retry and for good."""

    @task("task")
    async def odd() -> None:
        raise error

    await sql.add(queue_name="q", max_attempts=1 if final else 5)
    assert await (await make_runner(odd)).process_available_jobs() == 1
    assert await sql.locks() == (0, 0)
    if final:
        (entry,) = await sql.dead()
        assert entry["failure_reason"]
        assert await sql.count() == 0
    else:
        assert await sql.value("select last_error from graphile_worker._private_jobs")
