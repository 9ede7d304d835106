"""Where claims begin to look for queued jobs: what it hides, what it must not hide, and when it is made."""

import asyncio
import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from backfill.model import Task, task
from backfill.worker import claim, frontier
from backfill.worker.claimed import HandBack
from backfill.worker.frontier import Frontier

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, RunWorker, Sql, Until
    from tests.worker.test_claim_locks import MakeClaims

AGO = datetime(2020, 1, 1, tzinfo=UTC)
HOLD = "update graphile_worker._private_job_queues set locked_at = now(), locked_by = $1 where queue_name = 'held'"
ROW: Any = (0, 0, None, [7])  # a priority, a moment as a number, no id, a queue that was passed


def at(seconds: int) -> str:
    return f"'2020-01-01 00:00+00'::timestamptz + {seconds} * interval '1 s'"


def ids(rows: list[Any]) -> list[int]:
    return [row["id"] for row in rows]


async def test_it_is_at_the_first_job_of_a_queue_that_is_free(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(30, queue="'held'", run_at=at(0))
    await sql.run(HOLD, "node")
    made = await sql.add_many(20, queue="'q' || n % 3", run_at=at(60))
    await sql.add_many(5, priority="7", run_at=at(5))
    assert await claims.frontier() == (
        [0, 7],
        [AGO + timedelta(seconds=60), AGO + timedelta(seconds=5)],
        [made[0], None],
    )


async def test_a_queue_that_others_free_meanwhile_does_not_begin_with_a_later_job(sql: "Sql", claims: "Claims") -> None:
    first = await sql.add_many(3, queue="'held'", run_at=at(0))
    await sql.run(HOLD, "node")
    free = await sql.add_many(1, queue="'q'", run_at=at(60))
    await sql.add_many(1, queue="'held'", run_at=at(120))
    found, passed = await claims.frontier(), await claims.passed()
    await sql.run(HOLD.replace("now()", "null"), None)
    assert ids(await claims.take(frontier=found, passed=passed)) == free
    assert ids(await claims.take()) == first[:1]


@pytest.mark.parametrize("same_moment", [True, False])
async def test_a_job_that_another_worker_gives_back_is_still_the_first_of_its_queue(
    sql: "Sql", make_claims: "MakeClaims", same_moment: bool
) -> None:
    """When the frontier was made it ran, so that nothing of its queue was before the frontier."""
    one, other = await make_claims("backfill-one"), await make_claims("backfill-other")
    moments = [at(0), at(0), at(0), at(0)] if same_moment else [at(0), at(2), at(1), at(3)]
    for moment, queue in zip(moments, ["q", "q", "free", "free"], strict=True):
        await sql.add_many(1, queue=f"'{queue}'", run_at=moment)
    (running,) = await one.take(1)
    found, passed = await other.frontier(), await other.passed()
    await sql.run(
        "update graphile_worker._private_jobs set locked_at = null, locked_by = null where locked_by is not null"
    )
    await sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")
    taken = [row["queue_name"] for row in await other.take(4, frontier=found, passed=passed)]
    assert taken == ["free"]
    await sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")
    assert running["id"] in ids(await other.take(4))


async def test_what_the_asker_holds_counts_as_free(sql: "Sql", claims: "Claims") -> None:
    """It knows when it frees it, and then its next job comes."""
    made = await sql.add_many(3, queue="'held'", run_at=at(0))
    await sql.add_many(3, queue="'q'", run_at=at(60))
    await sql.run(HOLD, f"{claims.worker}/7")
    assert await claims.frontier() == ([0], [AGO], [made[0]])
    await sql.run(HOLD, f"{claims.worker}x/7")
    assert (await claims.frontier())[1] == [AGO + timedelta(seconds=60)]


async def test_behind_all_that_is_due_where_all_is_held(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(3, queue="'held'", run_at=at(0))
    await sql.add_many(3, queue="'held'", run_at="now() + interval '1 h'")
    await sql.run(HOLD, "node")
    found = await claims.frontier()
    assert found == ([0], [AGO + timedelta(microseconds=1)], [None])
    added = await sql.add(queue_name="q")
    assert ids(await claims.take(frontier=found)) == [added]


async def test_queues_with_a_lane_of_their_own_are_as_if_held(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(3, queue="'own'", run_at=at(0))
    await sql.add_many(3, queue="'q'", run_at=at(60))
    found = await claims.frontier(other_queues=["own"])
    assert found[1] == [AGO + timedelta(seconds=60)]


@pytest.mark.parametrize("run_at", ["'-infinity'", "now() + interval '1 h'"])
async def test_none_for_what_is_not_due_or_older_than_python_s_first_date(
    sql: "Sql", claims: "Claims", run_at: str
) -> None:
    await sql.add_many(3, queue="'q'", run_at=run_at)
    assert await claims.frontier() == ([], [], [])


async def test_it_hides_queued_jobs_before_it_and_nothing_else(sql: "Sql", claims: "Claims") -> None:
    parallel = await sql.add_many(1, run_at=at(0))
    await sql.add_many(1, queue="'hidden'", run_at=at(10))
    queued = await sql.add_many(2, queue="'q' || n", run_at=at(60))
    other = await sql.add_many(1, queue="'other'", priority="3", run_at=at(0))
    taken = await claims.take(frontier=([0], [AGO + timedelta(seconds=60)], [None]))
    assert ids(taken) == [*parallel, *queued, *other]


@pytest.mark.parametrize("with_id", [True, False])
async def test_order_of_one_moment_is_by_id_with_it_too(sql: "Sql", claims: "Claims", with_id: bool) -> None:
    made = await sql.add_many(40, queue="'q' || n % 4", run_at=at(0))
    # Rewritten rows lie elsewhere in the table: an order by place would show.
    await sql.run("update graphile_worker._private_jobs set last_error = '' where id = any($1)", made[4:20])
    await sql.run("update graphile_worker._private_jobs set last_error = '' where id = any($1)", made[:4])
    priorities, times, lowest = await claims.frontier()
    assert lowest == made[:1]
    taken = []
    for _ in range(10):
        rows = await claims.take(frontier=(priorities, times, lowest if with_id else [None]))
        taken += sorted(ids(rows))
        await claims.sql.run("delete from graphile_worker._private_jobs where locked_by is not null")
        await claims.sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")
    assert taken == made


def test_it_is_made_after_a_slow_claim_and_stands_in_proportion_to_its_cost() -> None:
    found = Frontier(is_used=True)
    assert (found.is_wanted, found.seconds_left) == (False, None)
    found.claimed(0.01, 500, None)
    assert not found.is_wanted, "five hundred jobs take that"
    found.claimed(0.01, 24, None)
    assert found.is_wanted
    found.found([ROW], 0.05)
    assert not found.is_wanted
    assert found.columns[0] == [0]
    assert found.seconds_left is not None
    assert 0.5 < found.seconds_left <= 1
    found.found([ROW], 60)
    assert found.seconds_left is not None
    assert found.seconds_left <= 2


def test_it_is_made_after_two_claims_of_one_moment() -> None:
    found = Frontier(is_used=True)
    for moment in ((0, 1), (0, 2), None, (0, 2), (1, 2)):
        found.claimed(0, 1, moment)
        assert not found.is_wanted
    found.claimed(0, 1, (1, 2))
    assert found.is_wanted


def test_one_that_cost_much_is_made_again_when_it_ends_a_cheap_one_when_a_claim_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = Frontier(is_used=True)
    for cost, again in ((0.05, True), (0.0001, False)):
        found.found([ROW], cost)
        now += 10
        assert found.is_wanted is again
        assert found.columns[0] == []


def test_one_that_may_no_longer_hold_is_gone_at_once_and_made_again() -> None:
    found = Frontier(is_used=True)
    found.forget()
    assert not found.is_wanted
    found.being_made()
    found.found([ROW], 0.05)
    assert found.passed == [7]
    found.forget()
    assert (found.columns, found.passed) == (([], [], []), [])
    assert found.is_wanted


def test_never_for_a_run_that_ends_when_nothing_is_left() -> None:
    found = Frontier(is_used=False)
    found.claimed(10, 1, None)
    assert not found.is_wanted


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every claim counts as slow."""
    monkeypatch.setattr(frontier, "_SLOW", -1.0)
    monkeypatch.setattr(frontier, "_SLOW_JOB", 0.0)
    return iter(())


def noting(name: str, seen: list[int]) -> Task[Any]:
    @task(name)
    async def note(payload: dict[str, int]) -> None:
        seen.append(payload["n"])

    return note


@pytest.mark.usefixtures("eager")
async def test_a_worker_runs_what_is_behind_a_held_queue_and_then_the_queue_when_it_is_free(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    seen: list[int] = []
    await sql.add_many(500, queue="'held'", run_at=at(0))
    await sql.run(HOLD, "node")
    await sql.add_many(300, queue="'q' || n % 50", run_at=at(60))
    async with run_worker(noting("task", seen), ready=False) as running:
        await until(lambda: len(seen) == 300, "the other queues' jobs have run")
        assert running.worker.claimer._frontier.columns[0], "it was needed"
        await sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(seen) == 800, "so have the held queue's", limit=60)
        assert running.worker.claimer.polls == 0
    assert seen[300:] == list(range(1, 501))


@pytest.mark.usefixtures("eager")
async def test_a_worker_runs_a_queue_that_it_passed_from_its_first_job_on(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    seen: list[int] = []
    before: list[int] = []

    @task("late")
    async def late() -> None:
        before.append(len(seen))

    await sql.add_many(200, queue="'held'", run_at=at(0))
    await sql.run(HOLD, "node")
    (stuck,) = await sql.add_many(1, queue="'free'", run_at=at(60))
    await sql.add_many(5, "late", queue="'held'", run_at=at(120))
    transaction = other.connection.transaction()
    await transaction.start()
    await other.run("select 1 from graphile_worker._private_jobs where id = $1 for update", stuck)
    async with run_worker(noting("task", seen), late, ready=False) as running:
        claimer = running.worker.claimer
        await until(lambda: claimer._frontier.columns[0] and claimer._frontier.passed, "it was needed")
        await sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(before) == 5, "all of the queue have run", limit=60)
        await transaction.rollback()
    assert before == [200] * 5


async def test_what_a_frontier_hides_is_looked_for_when_it_ends(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    seen: list[int] = []
    in_an_hour = (datetime.now(UTC) + timedelta(hours=1) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )
    async with run_worker(noting("task", seen)) as running:
        running.worker.claimer._frontier.found([cast("Any", (0, in_an_hour, None, []))], 0.05)
        await sql.add("task", {"n": 1}, queue_name="q")
        await until(lambda: seen == [1], "the job has run")
        assert running.worker.claimer.polls == 0


@pytest.mark.usefixtures("eager")
async def test_several_workers_keep_the_order_of_queues_that_they_pass_to_each_other(
    sql: "Sql", run_worker: "RunWorker", until: "Until", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "POLL_WHILE_LISTENING", 0.1)
    ones: list[int] = []
    twos: list[int] = []
    settings = {"poll_interval": timedelta(seconds=0.1)}
    async with run_worker(noting("one", ones), **settings), run_worker(noting("two", twos), **settings):
        for name in ("one", "two"):
            await sql.add_many(100, name, queue="'q'", run_at=at(0))
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(ones) == len(twos) == 100, "all have run", limit=60)
    assert ones == twos == list(range(1, 101))


def test_what_was_found_is_not_taken_if_there_was_something_to_forget_meanwhile() -> None:
    found = Frontier(is_used=True)
    found.being_made()
    found.forget()
    found.found([ROW], 0.05)
    assert (found.columns[0], found.seconds_left) == ([], None)
    found.being_made()
    found.found([ROW], 0.05)
    assert found.columns[0] == [0]


@pytest.mark.parametrize("queue", ["q", None])
async def test_a_job_that_is_handed_back_ends_it_and_the_floors(
    sql: "Sql", run_worker: "RunWorker", until: "Until", monkeypatch: pytest.MonkeyPatch, queue: str | None
) -> None:
    """They were made while that job ran: its successor in the queue may be the first behind them."""
    monkeypatch.setattr(frontier, "_LONGEST", 3600.0)
    may_end = asyncio.Event()

    @task("task")
    async def wait() -> None:
        await may_end.wait()

    async with run_worker(wait) as running:
        worker = running.worker
        await sql.add(queue_name=queue)
        await until(lambda: any(slot.current for slot in worker.slots), "it runs")
        (job,) = [slot.current for slot in worker.slots if slot.current is not None]
        found = worker.claimer._frontier
        found.being_made()
        found.found([ROW], 3600.0)
        assert found.passed == [7]
        floors = worker.claimer._statements.floors
        floors._until = math.inf
        worker.releaser.settle(job, HandBack())
        await until(lambda: found.passed != [7] and floors.seconds_left is None, "both are forgotten")
        assert worker.claimer.polls == 0
        may_end.set()
        await until(lambda: not worker.releaser.held, "it has run")


async def test_what_our_own_held_job_hides_when_it_comes_back(sql: "Sql", claims: "Claims") -> None:
    """Why that is so: our queues count as free."""
    made = await sql.add_many(2, queue="'q'", run_at=at(0))
    assert ids(await claims.take(1)) == made[:1]
    found, passed = await claims.frontier(), await claims.passed()
    await sql.run("update graphile_worker._private_jobs set locked_at = null, locked_by = null")
    await sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")
    assert ids(await claims.take(1, frontier=found, passed=passed)) == made[1:]
