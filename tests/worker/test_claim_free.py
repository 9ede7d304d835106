"""The claim for when no job has a queue: what it takes is what the claim for all jobs would take."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import JobSpec, task

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, RunWorker, Sql, Until

    from backfill.client import BackfillClient

SUSPECT = "'{\"backfill:crashes=1\": true}'"
MIXED = (
    {"priority": "n % 3", "run_at": "now() - n % 7 * interval '1 s'"},
    {"priority": "-n % 2", "key": "'k' || n", "run_at": "now() - n * interval '1 h'"},
    {"priority": "-5", "flags": SUSPECT, "run_at": "now() - n * interval '1 h'"},
    {"priority": "-9", "run_at": "now() + interval '1 h'"},
    {"priority": "-9", "attempts": "25"},
)


def ids(rows: list[Any]) -> list[int]:
    return [row["id"] for row in rows]


@pytest.mark.parametrize("suspects", [True, False])
@pytest.mark.parametrize("priorities", [(-32768, 32767), (0, 1)])
async def test_it_takes_what_the_other_takes(
    sql: "Sql", claims: "Claims", priorities: tuple[int, int], suspects: bool
) -> None:
    for columns in MIXED:
        await sql.add_many(5, **columns)
    await sql.add_many(3, "other")
    for idle in (1, 4, 2, 30):
        transaction = claims.sql.connection.transaction()
        await transaction.start()
        expected = await claims.take(idle, priorities=priorities, suspects=suspects)
        await transaction.rollback()
        claims.number -= 1
        got = await claims.take_free(idle, priorities=priorities, suspects=suspects)
        untimed = [{**row, "locked_at": None} for row in got]
        assert untimed == [{**row, "locked_at": None} for row in expected]
    assert await claims.take_free(30, priorities=priorities, suspects=False) == []


async def test_nothing_once_there_is_a_queue(sql: "Sql", claims: "Claims") -> None:
    await sql.add("task", queue_name="q", priority=-1)
    await sql.add()
    assert await claims.take_free() == []
    assert len(await claims.take()) == 2


async def test_nothing_for_a_dead_worker(sql: "Sql", claims: "Claims") -> None:
    job = await sql.add()
    await sql.run("update graphile_worker.backfill_workers set dead_at = now()")
    assert await claims.take_free() == []
    assert await claims.take() == []
    assert await claims.take_head("q") == []
    assert await sql.value("select locked_by is null from graphile_worker._private_jobs where id = $1", job)


async def test_only_what_was_due_when_the_caller_began(sql: "Sql", claims: "Claims") -> None:
    began_at = await sql.value("select now()")
    (due,) = await sql.add_many(1, run_at="now() - interval '1 s'")
    (child,) = await sql.add_many(1)
    await sql.add_many(1, run_at="clock_timestamp()", attempts="1")
    assert sorted(ids(await claims.take_free(began_at=began_at))) == [due, child]


@pytest.mark.parametrize("queued", [False, True])
async def test_a_claim_that_finds_nothing_writes_nothing(sql: "Sql", claims: "Claims", queued: bool) -> None:
    """Each write of an idle fleet's looks would be one to the log, and a commit."""
    if queued:
        await sql.add("task", queue_name="q", run_at=timedelta(hours=1))
    async with claims.sql.connection.transaction():
        for take in (claims.take, claims.take_free):
            assert await take() == []
        assert await claims.sql.value("select pg_current_xact_id_if_assigned()") is None


async def test_the_first_queued_job_is_no_later_than_others(
    client: "BackfillClient", sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """The worker claims as if there were no queues; a notification is all that it hears of the first."""
    ran = []

    @task("task")
    async def note(payload: Any) -> None:
        ran.append(payload)

    async with run_worker(note) as running:
        statements = running.worker.claimer._statements
        await client.enqueue("task", 1)
        await until(lambda: ran == [1], "the first has run")
        assert not statements._may_be_queued
        await client.enqueue("task", 2, JobSpec(queue="q"))
        await until(lambda: ran == [1, 2], "the queued one has run")
        await client.enqueue_many([("task", 3, JobSpec(priority=-1)), ("task", 4, JobSpec(queue="q"))])
        await until(lambda: sorted(ran) == [1, 2, 3, 4], "all have run")
        assert running.worker.claimer.polls == 0
