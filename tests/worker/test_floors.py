"""Claims that begin behind dead index entries."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worker.test_plans import NO_FRONTIER, Prepared, pages

from backfill.model import task
from backfill.worker import floors
from backfill.worker.floors import Floors

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import Claims, RunWorker, Sql, Until

QUICK, SLOW = 0.001, 0.5  # seconds
MINUTE = 60_000_000  # microseconds


def a_job(priority: int, due: int, queue_id: int | None = None) -> Any:
    return SimpleNamespace(priority=priority, due=due, queue_id=queue_id)


def standing(*jobs: Any) -> Floors:
    made = Floors(is_used=True)
    made.claimed(QUICK, [], everywhere=True)
    made.claimed(SLOW, jobs, everywhere=True)
    return made


def test_none_before_a_claim_was_slow() -> None:
    made = Floors(is_used=True)
    for _ in range(3):
        made.claimed(QUICK, [a_job(0, MINUTE)], everywhere=True)
    assert made.split([(0, -5, 5, 1, 2)]) == ([(0, -5, 5, 1, 2)], [None])
    made.claimed(QUICK + 500 * 0.00002, [a_job(0, MINUTE)] * 500, everywhere=True)
    assert made.seconds_left is None, "it took long since it brought many"


def test_none_on_a_slow_network_as_such() -> None:
    made = Floors(is_used=True)
    for _ in range(10):
        made.claimed(0.05, [a_job(0, MINUTE)], everywhere=True)
    assert made.seconds_left is None


def test_pieces_are_cut_at_the_priorities_that_are_known() -> None:
    made = standing(a_job(0, 2 * MINUTE), a_job(0, MINUTE), a_job(3, 0), a_job(9, 0), a_job(2, 0, queue_id=1))
    pieces, times = made.split([(0, -5, 3, 1, 2), (1, 4, 8, 5, 6)])
    assert pieces == [(0, -5, -1, 1, 2), (0, 0, 0, 1, 2), (0, 1, 2, 1, 2), (0, 3, 3, 1, 2), (1, 4, 8, 5, 6)]
    second = timedelta(seconds=1)
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    assert times == [None, epoch + timedelta(minutes=2) - second, None, epoch - second, None]


@given(st.sets(st.integers(-6, 6), max_size=12), st.integers(-5, 5), st.integers(0, 5))
def test_cut_pieces_cover_the_same_priorities_once(known: set[int], low: int, size: int) -> None:
    made = standing(*(a_job(priority, MINUTE) for priority in known))
    pieces, times = made.split([(0, low, low + size, 1, 2)])
    assert [p for _, first, last, *_ in pieces for p in range(first, last + 1)] == list(range(low, low + size + 1))
    assert all(first == last for (_, first, last, *_), time in zip(pieces, times, strict=True) if time is not None)


def test_they_end_in_proportion_to_what_the_slow_claim_took_and_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = standing(a_job(0, 0))
    assert 1.9 < (made.seconds_left or 0) <= 2.0
    made.claimed(SLOW, [], everywhere=False)
    made.forget()
    assert made.seconds_left is None
    never = Floors(is_used=False)
    never.claimed(QUICK, [], everywhere=True)
    never.claimed(SLOW, [a_job(0, 0)], everywhere=True)
    assert never.seconds_left is None


async def test_a_claim_begins_at_its_floor(sql: "Sql", claims: "Claims") -> None:
    (before,) = await sql.add_many(1, run_at="now() - interval '1 h'")
    (behind,) = await sql.add_many(1, run_at="now() - interval '1 s'")
    (queued,) = await sql.add_many(1, queue="'q'", run_at="now() - interval '1 h'")
    floor = await sql.value("select now() - interval '1 min'")
    taken = await claims.take(floor=floor)
    assert {row["id"] for row in taken} == {behind, queued}
    assert [row["id"] for row in await claims.take()] == [before]


async def test_a_worker_finds_what_comes_late_and_new_priorities_at_once(
    sql: "Sql", run_worker: "RunWorker", until: "Until", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every claim counts as slow. A job of a new priority needs no poll; one with an earlier time comes when the while is over."""
    monkeypatch.setattr(floors, "_SLOW", -1.0)
    monkeypatch.setattr(floors, "_SHORTEST", 2.0)
    ran: list[int] = []

    @task("task")
    async def note(payload: int) -> None:
        ran.append(payload)

    async with run_worker(note) as running:
        claimer = running.worker.claimer
        await sql.add("task", 1)
        await until(lambda: ran == [1], "the first has run")
        await until(lambda: claimer._statements.floors.seconds_left, "there is a floor")
        await sql.add("task", 2, priority=-7)
        await sql.add("task", 3, priority=7)
        await until(lambda: sorted(ran) == [1, 2, 3], "those of new priorities have run")
        assert claimer._statements.floors.seconds_left
        await sql.add("task", 4, run_at=timedelta(hours=-1))
        await until(lambda: sorted(ran) == [1, 2, 3, 4], "the late one has run")
        assert claimer.polls == 0


async def test_under_an_old_snapshot_a_claim_reads_little(db: "Database", sql: "Sql", claims: "Claims") -> None:
    """Thousands of jobs have come and gone, and none of their index entries can be taken out."""
    old = await db.connect()
    try:
        await old.execute("begin isolation level repeatable read")
        await old.fetch("select 1")
        await sql.add_many(5_000, run_at="clock_timestamp() - interval '1 min'")
        await sql.run("update graphile_worker._private_jobs set locked_by = 'x', locked_at = now()")
        await sql.run("delete from graphile_worker._private_jobs")
        floor = await sql.value("select now() - interval '1 s'")
        await sql.add()
        prepared = Prepared(claims.sql)
        await prepared.prepare("claim_jobs")
        piece = (await claims.task_ids(["task"]), [0], [0], [0], [1], [1])
        read = {}
        for known in (None, floor):
            args: tuple[Any, ...] = (claims.token, *piece, None, True, [], [], *NO_FRONTIER, [known])
            plan = await prepared.explain("claim_jobs", *args)
            assert plan["Actual Rows"] == 1
            read[known] = pages(plan)
            await sql.run("update graphile_worker._private_jobs set locked_by = null, locked_at = null")
        assert read[floor] * 5 < read[None]
    finally:
        await old.close()
