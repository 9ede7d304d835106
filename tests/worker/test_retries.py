"""When a failed job runs again, by what the database has recorded: `waits` keeps what each release wrote into run_at."""

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import JobSpec, RetryPolicy, Task, task
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

    from backfill.client import BackfillClient

EXACT = RetryPolicy(5, 2.0, 30.0, 3.0, 0.0)
RECORD = """
create table public.waits (job_id int8, attempts int, seconds float8);
create function public.record() returns trigger language plpgsql as $$
begin
  insert into public.waits values (new.id, new.attempts, extract(epoch from new.run_at - now()));
  return new;
end $$;
create trigger record after update on graphile_worker._private_jobs
  for each row when (old.locked_at is not null and new.locked_at is null) execute function public.record()
"""


@pytest.fixture
async def recorded(sql: "Sql") -> "Sql":
    await sql.run(RECORD)
    return sql


async def waits(sql: "Sql") -> list[float]:
    return [row["seconds"] for row in await sql.rows("select seconds from public.waits order by attempts")]


def failing(**settings: Any) -> Task[Any]:
    @task("fails", **settings)
    async def fails() -> None:
        raise RuntimeError("again")

    return fails


async def use_up(sql: "Sql", make_runner: "MakeRunner", defined: Task[Any], runs: int = 20) -> int:
    """Run what there is, each time by a new worker and without waiting, until it is gone; how many runs there were."""
    total = 0
    for _ in range(runs):
        total += await (await make_runner(defined)).process_available_jobs()
        await sql.run("update graphile_worker._private_jobs set run_at = now()")
    return total


def assert_in_band(found: list[float], policy: RetryPolicy) -> None:
    exact = [
        min(
            policy.initial_delay.total_seconds() * policy.backoff_multiplier**n,
            policy.max_delay.total_seconds(),
        )
        for n in range(len(found))
    ]
    for seconds, wait in zip(found, exact, strict=True):
        assert abs(seconds - wait) <= policy.jitter_factor * wait + 0.000_01


@pytest.mark.parametrize("by", ["task", "spec", "spec before task", "task, added by name"])
async def test_the_policy_of_the_job_or_of_its_task(
    recorded: "Sql", make_runner: "MakeRunner", client: "BackfillClient", by: str
) -> None:
    other = RetryPolicy(9, 100.0, 100.0)
    defined = failing(retry_policy={"spec": None, "spec before task": other}.get(by, EXACT))
    spec = JobSpec(retry_policy=EXACT) if by.startswith("spec") else None
    await client.enqueue("fails" if by == "task, added by name" else defined, {}, spec)
    runs = await use_up(recorded, make_runner, defined)
    found = await waits(recorded)
    # Added by its name, the job has the default limit of eight; the worker's task only knows the waits.
    assert runs == len(found) + 1 == (8 if by == "task, added by name" else 5)
    assert found == pytest.approx([2.0, 6.0, 18.0, 30.0, 30.0, 30.0, 30.0][: runs - 1])
    assert len(await recorded.dead()) == 1


@pytest.mark.parametrize("name", ["fast", "default", "aggressive", "conservative"])
async def test_presets_within_their_jitter(
    recorded: "Sql", make_runner: "MakeRunner", client: "BackfillClient", name: str
) -> None:
    policy: RetryPolicy = getattr(RetryPolicy, name)()
    await client.enqueue("fails", {}, JobSpec(retry_policy=policy))
    assert await use_up(recorded, make_runner, failing()) == policy.max_attempts
    found = await waits(recorded)
    assert len(found) == policy.max_attempts - 1
    assert_in_band(found, policy)


async def test_jitter_is_random(recorded: "Sql", make_runner: "MakeRunner", client: "BackfillClient") -> None:
    spec = JobSpec(retry_policy=RetryPolicy(2, 100.0, 100.0, 1.0, 0.5))
    await client.enqueue_many([("fails", {}, spec)] * 40)
    await (await make_runner(failing())).process_available_jobs()
    found = await waits(recorded)
    assert len({round(seconds, 3) for seconds in found}) > 30
    assert all(50 <= seconds <= 150 for seconds in found)


async def test_without_a_policy_graphile_s_back_off(recorded: "Sql", make_runner: "MakeRunner") -> None:
    await recorded.add("fails", max_attempts=13)
    assert await use_up(recorded, make_runner, failing()) == 13
    assert await waits(recorded) == pytest.approx([math.exp(min(n, 10)) for n in range(1, 13)], rel=1e-6)


async def test_the_row_s_limit_decides_how_often(
    recorded: "Sql", make_runner: "MakeRunner", client: "BackfillClient"
) -> None:
    await client.enqueue("fails", {}, JobSpec(retry_policy=EXACT, max_attempts=2))
    assert await use_up(recorded, make_runner, failing(retry_policy=EXACT)) == 2
    (entry,) = await recorded.dead()
    assert entry["failure_reason"] == "Job exceeded maximum retry attempts (2/2)"


async def test_a_job_with_a_long_way_to_go_does_not_wait_for_ever(
    recorded: "Sql", make_runner: "MakeRunner", client: "BackfillClient"
) -> None:
    await client.enqueue("fails", {}, JobSpec(retry_policy=RetryPolicy(32767, 1.0, 60.0, 10.0, 0.0)))
    await recorded.run("update graphile_worker._private_jobs set attempts = 32000")
    await (await make_runner(failing())).process_available_jobs()
    assert await waits(recorded) == pytest.approx([60.0])


async def test_fast_retries_are_governed_by_their_policy_across_a_restart(
    recorded: "Sql", run_worker: "RunWorker", client: "BackfillClient", until: "Until"
) -> None:
    """Each try by another worker, in real time, with the poll an hour away."""
    began: list[Any] = []

    @task("fails")
    async def fails(ctx: WorkerContext) -> None:
        began.append((ctx.attempt, ctx.worker_id, await ctx.pool.fetchval("select now()") - ctx.job.run_at))
        raise RuntimeError("again")

    job = (await client.enqueue("fails", {}, JobSpec(retry_policy=RetryPolicy.fast()))).unwrap()
    for tries in (1, 2, 3):
        async with run_worker(fails, ready=False) as running:
            await until(lambda tries=tries: len(began) == tries, "it was tried once more")
            await until(lambda: not running.worker.releaser.held, "and released")
            assert running.worker.claimer.polls == 0
    assert [attempt for attempt, *_ in began] == [1, 2, 3]
    assert len({worker for _, worker, _ in began}) == 3
    assert all(late >= timedelta(0) for *_, late in began)
    assert_in_band(await waits(recorded), RetryPolicy.fast())
    (entry,) = await recorded.dead()
    assert (entry["original_job_id"], entry["failure_reason"]) == (job.id, "Job exceeded maximum retry attempts (3/3)")


async def test_a_retried_job_does_not_hold_its_successors(
    recorded: "Sql", make_runner: "MakeRunner", client: "BackfillClient"
) -> None:
    order: list[Any] = []

    @task("fails", retry_policy=EXACT)
    async def fails(payload: Any) -> None:
        order.append(payload)
        if payload == 1:
            raise RuntimeError("again")

    for n in (1, 2, 3):
        await client.enqueue(fails, n, JobSpec(queue="q"))
    await (await make_runner(fails)).process_available_jobs()
    assert order == [1, 2, 3]
    assert await recorded.count() == 1
    assert await recorded.locks() == (0, 0)
