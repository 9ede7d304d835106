"""Jobs with keys: Graphile Worker's rules, and adds that race claims."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill import AlreadyInProgress, BackfillClient, Enqueued, EnqueueOutcome, Job, JobKeyMode, JobSpec
from backfill.errors import AlreadyInProgressError, DatabaseError

if TYPE_CHECKING:
    from tests.client.conftest import Raw, Session

REPLACE, PRESERVE, DEDUPE = JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT, JobKeyMode.UNSAFE_DEDUPE
SOON = datetime(2090, 1, 1, tzinfo=UTC)
LATE = datetime(2100, 1, 1, tzinfo=UTC)

CLAIM = """
update graphile_worker._private_jobs set locked_at = now(), locked_by = 'w', attempts = attempts + 1
where id = (select id from graphile_worker._private_jobs where is_available order by id limit 1 for update skip locked)
returning id, revision
"""
HELD = "where id = (select id from graphile_worker._private_jobs where id = $1 for update skip locked) returning id"
FAIL = f"update graphile_worker._private_jobs set locked_at = null, locked_by = null {HELD}"
FINISH = f"delete from graphile_worker._private_jobs {HELD}"

Add = Callable[[Any, JobSpec], Awaitable[EnqueueOutcome]]


@pytest.fixture(params=["alone", "in a batch"])
def add(client: BackfillClient, request: pytest.FixtureRequest) -> Add:
    """Adds a job of task t in one of the two ways."""

    async def one(payload: Any, spec: JobSpec) -> EnqueueOutcome:
        if request.param == "alone":
            return await client.enqueue("t", payload, spec)
        before, outcome, after = await client.enqueue_many([("other",), ("t", payload, spec), ("other",)])
        assert before.is_enqueued
        assert after.is_enqueued
        return outcome

    return one


async def test_replace_overwrites_the_waiting_job(add: Add, raw: "Raw") -> None:
    first = (await add(1, JobSpec(job_key="k", run_at=SOON, queue="q", priority=3, flags={"f"}))).unwrap()
    second = (await add(2, JobSpec(job_key="k", run_at=LATE, max_attempts=4))).unwrap()
    row = await raw.job(first.id)
    assert (second.id, second.revision, second.queue_name, second.flags) == (first.id, 1, None, frozenset())
    assert (row["payload"], row["run_at"], row["queue"], row["priority"]) == ("2", LATE, None, 0)
    assert (row["max_attempts"], row["flags"], row["revision"]) == (4, None, 1)
    assert second.run_at == LATE
    assert second.payload == 2


async def test_preserve_keeps_the_time(add: Add, raw: "Raw") -> None:
    first = (await add(1, JobSpec(job_key="k", run_at=SOON))).unwrap()
    second = (await add(2, JobSpec(job_key="k", run_at=LATE, job_key_mode=PRESERVE))).unwrap()
    row = await raw.job(first.id)
    assert (row["payload"], row["run_at"]) == ("2", SOON)
    assert (second.id, second.run_at, second.payload) == (first.id, SOON, 2)


async def test_preserve_keeps_no_time_at_which_it_failed(add: Add, raw: "Raw") -> None:
    first = (await add(1, JobSpec(job_key="k", run_at=SOON))).unwrap()
    await raw.run("update graphile_worker._private_jobs set attempts = 1, last_error = 'no' where id = $1", first.id)
    second = (await add(2, JobSpec(job_key="k", run_at=LATE, job_key_mode=PRESERVE))).unwrap()
    row = await raw.job(first.id)
    assert (row["run_at"], row["attempts"], second.run_at, second.attempts) == (LATE, 0, LATE, 0)


async def test_a_task_and_a_queue_that_have_no_row_get_one(client: BackfillClient, raw: "Raw") -> None:
    await client.enqueue("old", 1, JobSpec(job_key="k"))
    for spec in (JobSpec(job_key="k", queue="new"), JobSpec(job_key="k", job_key_mode=PRESERVE)):
        job = (await client.enqueue("new", 2, spec)).unwrap()
        assert (job.task_identifier, job.queue_name, job.payload) == ("new", spec.queue.name, 2)
        assert (await raw.job(job.id))["queue"] == spec.queue.name
    assert len(await raw.jobs()) == 1


async def test_dedupe_leaves_the_waiting_job_and_gives_it_back(add: Add, client: BackfillClient, raw: "Raw") -> None:
    first = (await client.enqueue("older", 1, JobSpec(job_key="k", queue="old", flags={"f"}))).unwrap()
    second = (await add(2, JobSpec(job_key="k", queue="new", job_key_mode=DEDUPE))).unwrap()
    assert (second.id, second.task_identifier, second.queue_name, second.payload) == (first.id, "older", "old", 1)
    assert second.flags == {"f"}
    assert (await raw.job(first.id))["payload"] == "1"


async def test_arrays_are_joined_and_the_outcome_says_so(add: Add) -> None:
    await add([1], JobSpec(job_key="k"))
    assert (await add([2], JobSpec(job_key="k"))).unwrap().payload == [1, 2]


@pytest.mark.parametrize("mode", [REPLACE, PRESERVE])
async def test_a_running_job_gets_a_successor(add: Add, raw: "Raw", mode: JobKeyMode) -> None:
    first = (await add(1, JobSpec(job_key="k"))).unwrap()
    await raw.claim(first.id)
    outcome = await add(2, JobSpec(job_key="k", job_key_mode=mode))
    assert isinstance(outcome, Enqueued)
    assert outcome.job.id != first.id
    assert (await raw.job(outcome.job.id))["payload"] == "2"
    old = await raw.job(first.id)
    assert (old["key"], old["attempts"], old["locked_by"], old["payload"]) == (None, 8, "worker/1", "1")


async def test_only_dedupe_on_a_running_job_is_already_in_progress(add: Add, raw: "Raw") -> None:
    first = (await add(1, JobSpec(job_key="k"))).unwrap()
    await raw.claim(first.id)
    outcome = await add(2, JobSpec(job_key="k", job_key_mode=DEDUPE))
    assert outcome == AlreadyInProgress("k")
    with pytest.raises(AlreadyInProgressError, match="'k'"):
        outcome.unwrap()
    assert [job["payload"] for job in await raw.jobs() if job["task"] == "t"] == ["1"]


async def test_a_dead_job_is_left_and_a_new_one_made(add: Add, raw: "Raw") -> None:
    first = (await add(1, JobSpec(job_key="k"))).unwrap()
    await raw.exhaust(first.id)
    second = (await add(2, JobSpec(job_key="k"))).unwrap()
    assert second.id != first.id
    assert (await raw.job(first.id))["key"] is None


@pytest.mark.parametrize("mode", [REPLACE, PRESERVE])
@pytest.mark.parametrize("batch", [False, True])
async def test_an_add_that_meets_a_claim_keeps_its_payload(
    client: BackfillClient, raw: "Raw", other: "Raw", mode: JobKeyMode, batch: bool
) -> None:
    first = (await client.enqueue("t", 1, JobSpec(job_key="k"))).unwrap()
    claim = raw.connection.transaction()
    await claim.start()
    await raw.claim(first.id)
    spec = JobSpec(job_key="k", job_key_mode=mode)

    async def add_one() -> Job:
        outcomes = await client.enqueue_many([("t", 2, spec)]) if batch else [await client.enqueue("t", 2, spec)]
        return outcomes[0].unwrap()

    adding = asyncio.create_task(add_one())
    await other.until_blocked()
    await claim.commit()
    job = await adding
    assert (job.key, job.payload) == ("k", 2)
    assert (await raw.job(job.id))["payload"] == "2"
    assert (await raw.job(first.id))["key"] is None


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("batch", [False, True])
async def test_an_empty_row_is_answered_by_sending_it_again(
    client: BackfillClient, raw: "Raw", batch: bool, in_transaction: bool
) -> None:
    """Graphile Worker's own functions give no row for a key whose job is claimed at that moment; ours repeat inside."""
    await _lose_races(raw, 3)
    connection = raw.connection if in_transaction else None
    transaction = raw.connection.transaction()
    await transaction.start()
    jobs = [("t", number, JobSpec(job_key=f"k{number}")) for number in range(3)]
    if batch:
        outcomes = await client.enqueue_many(jobs, connection=connection)
    else:
        outcomes = [await client.enqueue(*job, connection=connection) for job in jobs]
    await transaction.commit()
    assert [outcome.unwrap().key for outcome in outcomes] == ["k0", "k1", "k2"]
    assert sorted(job["payload"] for job in await raw.jobs()) == ["0", "1", "2"]


@pytest.mark.parametrize("code", ["40P01", "40001", "GWNOR"])
async def test_an_add_that_postgresql_ends_is_sent_again_unless_a_transaction_ends_with_it(
    client: BackfillClient, raw: "Raw", other: "Raw", code: str
) -> None:
    spec = JobSpec(job_key="k")
    await _lose_races(raw, 2, f"raise exception 'lost' using errcode = '{code}'")
    job = (await client.enqueue("t", 1, spec)).unwrap()  # of a task without a row, and so by add_job
    assert job.payload == 1
    await raw.claim(job.id)
    await raw.run("alter sequence public.tries restart")
    with pytest.raises(asyncpg.PostgresError, match="lost"):
        async with other.connection.transaction():
            await client.enqueue("t", 2, spec, connection=other.connection)
    assert [job["payload"] for job in await raw.jobs()] == ["1"]


async def test_races_lost_without_end_are_an_error_that_names_the_key(client: BackfillClient, raw: "Raw") -> None:
    await _lose_races(raw, 10_000)
    with pytest.raises(DatabaseError, match="key 'k' was claimed anew"):
        await client.enqueue("t", 1, JobSpec(job_key="k"))
    with pytest.raises(DatabaseError, match="key 'k' was claimed anew"):
        await client.enqueue_many([("t", 1, JobSpec(job_key="k"))])
    assert await raw.jobs() == []


async def test_no_payload_is_lost_between_adders_and_workers(
    client: BackfillClient, session: "Session", raw: "Raw"
) -> None:
    """Each add is seen by a worker, or replaced by a later add of its key that is, whatever the workers do meanwhile."""
    dice, rounds = random.Random(7), 60
    added: set[tuple[int, int]] = set()
    seen: set[tuple[int, int]] = set()
    done = asyncio.Event()

    async def adder(who: int) -> None:
        for turn in range(rounds):
            keys = dice.sample(["a", "b", "c"], dice.randint(1, 3))
            mode = dice.choice([REPLACE, PRESERVE, DEDUPE])
            specs = [JobSpec(job_key=key, job_key_mode=mode, max_attempts=32767) for key in keys]  # none may die
            jobs = [("t", f"{who}/{turn}", spec) for spec in specs]
            outcomes = [await client.enqueue(*jobs[0])] if len(jobs) == 1 else await client.enqueue_many(jobs)
            assert len(outcomes) == len(jobs)
            for outcome, key in zip(outcomes, keys, strict=True):
                if isinstance(outcome, Enqueued):
                    assert outcome.job.key == key
                    added.add((outcome.job.id, outcome.job.revision))
                else:
                    assert mode is DEDUPE

    async with asyncio.TaskGroup() as everybody:
        for fails in (False, False, True):
            everybody.create_task(_work(await session(), seen, done, fails))
        async with asyncio.TaskGroup() as adders:
            for who in range(4):
                adders.create_task(adder(who))
        done.set()

    lost = {(job_id, revision) for job_id, revision in added - seen if (job_id, revision + 1) not in added}
    assert lost == set()
    assert await raw.value("select count(*) from graphile_worker._private_jobs where is_available") == 0
    assert len(seen) > 3, "the workers must have been at it at the same time"


async def _work(raw: "Raw", seen: set[tuple[int, int]], done: asyncio.Event, fails: bool) -> None:
    """Run jobs as a worker does, without waiting for a row that an add has locked, until done and nothing is left."""
    stopped = False
    while not stopped:
        stopping = done.is_set()
        rows = await raw.rows(CLAIM)
        seen.update((row["id"], row["revision"]) for row in rows)
        for row in rows:
            while await raw.value(FAIL if fails and not stopping else FINISH, row["id"]) is None:
                pass
        stopped = stopping and not rows


async def _lose_races(raw: "Raw", times: int, how: str = "return null") -> None:
    """Have the keyed adds find no row that many times, as upstream's functions do when a claim comes in between."""
    await raw.run("create sequence public.tries")
    for name in ("add_job", "add_jobs"):
        await raw.run(f"alter function graphile_worker.{name} rename to real_{name}")
    await raw.run(
        f"""create function graphile_worker.add_job(identifier text, payload json, queue_name text, run_at timestamptz,
            max_attempts int4, job_key text, priority int4, flags text[], job_key_mode text)
        returns graphile_worker._private_jobs language plpgsql as $body$
        begin
            if nextval('public.tries') <= {times} then
                {how};
            end if;
            return (select job from graphile_worker.real_add_jobs(array[row(identifier, payload, queue_name, run_at,
                max_attempts, job_key, priority, flags)::graphile_worker.job_spec]) as job);
        end
        $body$"""
    )
    await raw.run(
        f"""create function graphile_worker.add_jobs(specs graphile_worker.job_spec[], job_key_preserve_run_at bool)
        returns setof graphile_worker._private_jobs language plpgsql as $body$
        declare
            spec graphile_worker.job_spec;
        begin
            foreach spec in array specs loop
                if nextval('public.tries') > {times} then
                    return query select * from graphile_worker.real_add_jobs(array[spec], job_key_preserve_run_at);
                end if;
            end loop;
        end
        $body$"""
    )


def test_the_modes_are_graphile_workers() -> None:
    assert json.loads(json.dumps([REPLACE, PRESERVE, DEDUPE])) == ["replace", "preserve_run_at", "unsafe_dedupe"]
