"""Adding a job under a key while workers claim, finish and fail the job that has it."""

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.schema.conftest import Sql

CLAIM = """
update graphile_worker._private_jobs as jobs
set locked_at = now(), locked_by = 'worker', attempts = jobs.attempts + 1
where id = (
    select id from graphile_worker._private_jobs where is_available order by id limit 1 for update skip locked
)
returning id, revision, payload::text
"""
FINISH = "delete from graphile_worker._private_jobs where id = $1"
FAIL = "update graphile_worker._private_jobs set locked_at = null, locked_by = null where id = $1"


@pytest.mark.parametrize("mode", ["replace", "preserve_run_at"])
async def test_an_add_that_meets_a_claim_leaves_its_payload(
    sql: "Sql", other: "Sql", wait_until_blocked: Any, db: "Database", mode: str
) -> None:
    first = await sql.add(job_key="k", payload="1")
    watcher = type(sql)(await db.connect(), db.schema)
    claim = sql.connection.transaction()
    await claim.start()
    await sql.lock(first["id"])
    adding = asyncio.create_task(other.add(job_key="k", payload="2", job_key_mode=mode))
    await wait_until_blocked(watcher, other)
    await claim.commit()
    second = await adding
    assert (second["key"], second["payload"], second["revision"]) == ("k", "2", 0)
    old = await sql.job(first["id"])
    assert (old["key"], old["attempts"], old["locked_by"], old["payload"]) == (None, 25, "someone", "1")


async def test_a_batch_that_meets_a_claim_gives_a_row_for_each_spec(
    sql: "Sql", other: "Sql", wait_until_blocked: Any, db: "Database"
) -> None:
    first = await sql.add(job_key="b", payload="1")
    watcher = type(sql)(await db.connect(), db.schema)
    claim = sql.connection.transaction()
    await claim.start()
    await sql.lock(first["id"])
    specs = [{"identifier": "t", "job_key": key, "payload": 2} for key in ("a", "b", "c")]
    adding = asyncio.create_task(other.add_many({"identifier": "t"}, *specs))
    await wait_until_blocked(watcher, other)
    await claim.commit()
    added = await adding
    assert sorted(job["key"] or "" for job in added) == ["", "a", "b", "c"]
    assert first["id"] not in {job["id"] for job in added}


async def test_an_add_that_meets_the_last_failure_leaves_its_payload(
    sql: "Sql", other: "Sql", wait_until_blocked: Any, db: "Database"
) -> None:
    first = await sql.add(job_key="k", max_attempts=1)
    await sql.lock(first["id"])
    watcher = type(sql)(await db.connect(), db.schema)
    release = sql.connection.transaction()
    await release.start()
    await sql.run(FAIL, first["id"])
    adding = asyncio.create_task(other.add(job_key="k", payload="2"))
    await wait_until_blocked(watcher, other)
    await release.commit()
    assert (await adding)["id"] != first["id"]
    assert (await sql.job(first["id"]))["key"] is None


async def test_an_add_that_meets_the_completion_inserts(
    sql: "Sql", other: "Sql", wait_until_blocked: Any, db: "Database"
) -> None:
    first = await sql.add(job_key="k")
    await sql.lock(first["id"])
    watcher = type(sql)(await db.connect(), db.schema)
    release = sql.connection.transaction()
    await release.start()
    await sql.run(FINISH, first["id"])
    adding = asyncio.create_task(other.add(job_key="k", payload="2"))
    await wait_until_blocked(watcher, other)
    await release.commit()
    assert (await adding)["payload"] == "2"


async def test_twenty_first_adds_of_one_key_make_one_job(db: "Database", sql: "Sql") -> None:
    sessions = [type(sql)(await db.connect(), db.schema) for _ in range(20)]
    jobs = await asyncio.gather(*(each.add("new", job_key="k", queue_name="q") for each in sessions))
    assert len({job["id"] for job in jobs}) == 1
    assert sorted(job["revision"] for job in jobs) == list(range(20))


async def test_no_payload_is_lost_between_adders_and_workers(db: "Database", sql: "Sql") -> None:
    """Each add is either seen by a claim or replaced by a later add, whatever the workers do meanwhile."""
    keys, rounds = ("a", "b"), 150
    added: set[tuple[int, int]] = set()
    claimed: set[tuple[int, int]] = set()
    working = True

    async def session() -> "Sql":
        return type(sql)(await db.connect(), db.schema)

    async def add(who: int) -> None:
        mine = await session()
        for turn in range(rounds):
            payload = json.dumps({"who": who, "turn": turn})
            if turn % 2:
                jobs = [await mine.add(job_key=keys[turn // 2 % 2], payload=payload)]
            else:
                order = keys if turn % 4 else tuple(reversed(keys))
                specs = [{"identifier": "task", "job_key": key, "payload": payload} for key in order]
                jobs = await mine.add_many(*specs)
                assert len(jobs) == len(keys)
            added.update((job["id"], job["revision"]) for job in jobs)

    async def work(finishes: bool) -> None:
        mine = await session()
        idle = False
        while working or not idle:
            rows = await mine.rows(CLAIM)
            claimed.update((row["id"], row["revision"]) for row in rows)
            for row in rows:
                await mine.run(FINISH if finishes else FAIL, row["id"])
            idle = not rows

    async with asyncio.TaskGroup() as everybody:
        for finishes in (True, True, False):
            everybody.create_task(work(finishes))
        async with asyncio.TaskGroup() as adders:
            for who in range(3):
                adders.create_task(add(who))
        working = False

    assert all(isinstance(job_id, int) for job_id, _ in added)
    lost = {(job_id, revision) for job_id, revision in added - claimed if (job_id, revision + 1) not in added}
    assert lost == set()
    assert len(claimed) > len(keys), "the workers must have been at it at the same time"
