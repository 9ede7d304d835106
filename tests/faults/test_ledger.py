"""The invariant of these tests notices what breaks it: each breach is made on purpose, with the tables alone."""

from typing import Any

import pytest
from tests.faults.conftest import Account
from tests.support.ledger import breaches, breaches_at_the_end

from backfill.model import JobSpec, Queue

RUN = """
insert into ledger (job, token, pid, queue, priority, run_at, attempt, max_attempts, crashes, began_at, seen_at, outcome)
values ($1, $2, 1, $3, 0, '2026-01-01', $4, 25, 0, now() + make_interval(secs => $5), now() + make_interval(secs => $6), $7)
"""
BURY = """
insert into graphile_worker.backfill_dlq (original_job_id, task_identifier, payload, failure_reason, failure_count, max_attempts)
select id, 'work', '{}', 'test', attempts, max_attempts from graphile_worker.jobs where id = $1
"""
REMOVE = "delete from graphile_worker._private_jobs where id = $1"


@pytest.fixture
async def jobs(account: Account) -> list[int]:
    spec = JobSpec(queue=Queue.serial("q"), max_attempts=25)
    return await account.add(*[("work", {}, spec, "done")] * 2)


async def run(account: Account, job: int, token: str, begin: float, end: float, **given: Any) -> None:
    """Note a run from one second to another."""
    values = {"queue": "q", "attempt": 1, "outcome": None, **given}
    await account.connection.execute(RUN, job, token, values["queue"], values["attempt"], begin, end, values["outcome"])


async def said(account: Account) -> list[str]:
    return await breaches(account.connection, account.schema)


async def test_all_is_well(account: Account, jobs: list[int]) -> None:
    await run(account, jobs[0], "a/1", 0, 1)
    await run(account, jobs[0], "a/2", 2, 3, attempt=2, outcome="done")
    await run(account, jobs[1], "a/3", 4, 5, outcome="done")
    assert await said(account) == []
    await account.rows(REMOVE, jobs[0])
    assert await said(account) == []
    assert len(await breaches_at_the_end(account.connection, account.schema)) == 1
    await account.rows(REMOVE, jobs[1])
    assert await breaches_at_the_end(account.connection, account.schema) == []


async def test_a_lost_job(account: Account, jobs: list[int]) -> None:
    await run(account, jobs[0], "a/1", 0, 1)
    await account.rows(REMOVE, jobs[0])
    assert [f"job {jobs[0]} is lost" in line for line in await said(account)] == [True]


async def test_a_job_in_two_places_that_should_have_ended_well(account: Account, jobs: list[int]) -> None:
    await account.rows(BURY, jobs[0])
    lines = await said(account)
    assert f"job {jobs[0]} is in the queue and in the dead letter queue" in lines
    assert f"job {jobs[0]} is a dead letter: it should have ended well" in lines
    await account.rows(BURY, jobs[0])
    assert f"job {jobs[0]} has 2 dead letters" in await said(account)


async def test_a_job_that_died_with_one_worker_is_no_dead_letter_with_more_it_may_be(
    account: Account, jobs: list[int]
) -> None:
    """Whoever kills worker after worker while one job runs in each makes it look like the cause."""
    await account.rows(BURY.replace("'test'", "'Job killed its worker: 4 workers died while they ran it'"), jobs[0])
    await account.rows(REMOVE, jobs[0])
    for number in range(2):
        assert await said(account) == [f"job {jobs[0]} is a dead letter: it should have ended well"]
        await run(account, jobs[0], f"a/{number}", 2 * number, 2 * number + 1, attempt=number + 1)
        await account.rows("update ledger set pid = $1 where token = $2", number, f"a/{number}")
    assert await said(account) == []


async def test_runs_that_overlap(account: Account, jobs: list[int]) -> None:
    """The second begins within the first, though another ended in between."""
    await run(account, jobs[0], "a/1", 0, 5, queue=None)
    await run(account, jobs[0], "a/2", 6, 7, queue=None, attempt=2)
    assert await said(account) == []
    await run(account, jobs[0], "b/1", 4, 4.5, queue=None, attempt=2)
    assert [line.split(" began at")[0] for line in await said(account)] == [f"job {jobs[0]}: run 3"]


async def test_a_queue_s_runs_that_overlap(account: Account, jobs: list[int]) -> None:
    await run(account, jobs[0], "a/1", 0, 5)
    await run(account, jobs[1], "b/1", 4, 6)
    assert [line.split(" began at")[0] for line in await said(account)] == [f"queue q: run 2 of job {jobs[1]}"]


async def test_a_queue_out_of_order(account: Account, jobs: list[int]) -> None:
    await run(account, jobs[1], "a/1", 0, 1)
    await run(account, jobs[0], "b/1", 2, 3)
    assert [line.split(" began at")[0] for line in await said(account)] == [f"queue q: job {jobs[1]}"]


async def test_a_claim_that_ran_twice_and_too_many_attempts(account: Account, jobs: list[int]) -> None:
    await run(account, jobs[0], "a/1", 0, 1, attempt=26)
    await run(account, jobs[0], "a/1", 2, 3)
    await account.rows("update graphile_worker._private_jobs set attempts = 26 where id = $1", jobs[1])
    assert sorted(await said(account)) == sorted(
        [
            f"job {jobs[0]} ran 2 times under the one claim a/1",
            f"job {jobs[0]} ran as attempt 26 of 25",
            f"job {jobs[1]} has had 26 of 25 attempts",
        ]
    )
