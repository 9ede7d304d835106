"""Serial queues that several workers share, or that somebody's transaction is in the way of."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import Task, task
from backfill.worker import WorkerContext, claim

if TYPE_CHECKING:
    from tests.worker.conftest import RunWorker, Sql, Until


def noting(name: str, seen: list[Any]) -> Task[Any]:
    @task(name)
    async def note(payload: Any) -> None:
        seen.append(payload)

    return note


async def test_a_queue_goes_on_between_workers_that_know_different_tasks(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """A queue's jobs for one worker are over, and the other, which has looked in vain, hears that it is free."""
    ones: list[Any] = []
    twos: list[Any] = []
    async with run_worker(noting("one", ones)) as one, run_worker(noting("two", twos)) as two:
        await sql.add_many(20, "one", queue="'q'", run_at="'2020-01-01'::timestamptz + 2 * n * interval '1 s'")
        await sql.add_many(20, "two", queue="'q'", run_at="'2020-01-01'::timestamptz + (2 * n + 1) * interval '1 s'")
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(ones) == len(twos) == 20, "all have run")
        assert one.worker.claimer.polls == two.worker.claimer.polls == 0
    assert [payload["n"] for payload in ones] == [payload["n"] for payload in twos] == list(range(1, 21))


async def test_several_workers_run_a_queue_one_job_at_a_time_in_order(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    order: list[int] = []
    at_once = 0

    @task("step")
    async def step(payload: dict[str, int], ctx: WorkerContext) -> None:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        await ctx.pool.fetchval("select 1")
        order.append(payload["n"])
        at_once -= 1

    async with run_worker(step) as one, run_worker(step) as two, run_worker(step):
        await sql.add_many(200, "step", queue="'q'", run_at="now()")
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: len(order) == 200, "all have run", limit=60)
        assert one.worker.claimer.polls == two.worker.claimer.polls == 0
    assert order == list(range(1, 201))
    assert (await sql.count(), await sql.locks(), await sql.dead()) == (0, (0, 0), [])


@pytest.mark.parametrize("what", ["_private_jobs where id = 1", "_private_job_queues where queue_name = 'held'"])
async def test_a_held_head_does_not_hide_other_queues_for_longer_than_a_poll(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until", monkeypatch: pytest.MonkeyPatch, *, what: str
) -> None:
    """A hundred jobs of a queue come first, and somebody's transaction holds the first of them, or the queue."""
    monkeypatch.setattr(claim, "POLL_WHILE_LISTENING", 0.1)
    seen: list[Any] = []
    await sql.add_many(100, queue="'held'", run_at="now() - interval '1 h'")
    await sql.add_many(3, queue="'free' || n", run_at="now() - interval '1 m'")
    async with other.connection.transaction():
        await other.rows(f"select * from graphile_worker.{what} for update")
        async with run_worker(noting("task", seen), poll_interval=timedelta(seconds=0.1)):
            await until(lambda: len(seen) >= 3, "the other queues' jobs have run")
            assert (
                await sql.count(
                    "job_queue_id = (select id from graphile_worker._private_job_queues where queue_name = 'held')"
                )
                >= 97
            )
    assert await sql.locks() == (0, 0)


async def test_no_worker_goes_hungry_while_another_s_slots_are_full(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """What one worker leaves, since it has no slot, is the other's without a poll."""
    running_now, may_end = 0, asyncio.Event()

    @task("task")
    async def hold() -> None:
        nonlocal running_now
        running_now += 1
        await may_end.wait()

    async with run_worker(hold), run_worker(hold):
        await sql.add_many(20)
        await sql.run("select pg_notify('jobs:insert', '')")
        await until(lambda: running_now == 20, "both are full")
        may_end.set()
