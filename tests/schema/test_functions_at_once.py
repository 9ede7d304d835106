"""All functions from many sessions at once. What holds whatever the order: a batch is there as a whole or not at all, a key
is in one row, and each payload that was accepted is in the table, or somebody took it out: a claim, a later add of its
key, or an administrator.

A version of a job is its id and revision; the accounts say who took which.
"""

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.schema.conftest import Sql

ROUNDS = 80
KEYS = ["a", "b", "c", "d"]
CLAIM = """
update graphile_worker._private_jobs set locked_at = now(), locked_by = $1, attempts = attempts + 1
where id = (select id from graphile_worker._private_jobs where is_available order by random() limit 1 for update skip locked)
returning id, revision
"""
FINISH = "delete from graphile_worker._private_jobs where id = $1 and locked_by = $2"
FAIL = "update graphile_worker._private_jobs set locked_at = null, locked_by = null where id = $1 and locked_by = $2"
# A job that was given up by hand, or whose key was removed while it ran, is out of attempts, and loses its key to the next.
BATCHES = """
select payload ->> 'batch' as batch, (payload ->> 'size')::int as size, count(*) as count
from graphile_worker._private_jobs where payload ->> 'batch' is not null group by 1, 2
"""

Versions = set[tuple[int, int]]


class World:
    """What everybody has done, as the database told."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.added: Versions = set()
        self.claimed: Versions = set()
        self.taken_out: Versions = set()
        self.refused = 0
        self.busy = True

    async def add(self, sql: "Sql", who: int) -> None:
        for turn in range(ROUNDS):
            keys = self.chance.sample(KEYS, self.chance.randint(1, 3))
            payload = {"who": who, "turn": turn}
            with contextlib.suppress(
                asyncpg.DeadlockDetectedError
            ):  # with an administrator's list of ids; nothing was added
                if len(keys) == 1:
                    mode = self.chance.choice(["replace", "preserve_run_at"])
                    rows = [await sql.add(job_key=keys[0], payload=json.dumps(payload), job_key_mode=mode)]
                else:
                    specs: list[dict[str, Any]] = [
                        {"identifier": "t", "job_key": key, "payload": payload, "queue_name": f"q{who % 2}"}
                        for key in keys
                    ]
                    rows = await sql.add_many(*specs)
                assert len(rows) == len(keys)
                assert {row["key"] for row in rows} == set(keys)
                self.added.update((row["id"], row["revision"]) for row in rows)

    async def add_refused(self, sql: "Sql") -> None:
        """Batches of which one job cannot be: none of the others may ever be seen."""
        wrongs = ({"max_attempts": 0}, {"job_key": "a"}, {"flags": [None]}, {"priority": 99999})
        for _ in range(ROUNDS):
            specs = [{"identifier": "t", "job_key": key, "payload": "never"} for key in KEYS]
            with pytest.raises((asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.PostgresError)):
                await sql.add_many(*specs, {"identifier": "u", "payload": "never", **self.chance.choice(wrongs)})
            self.refused += 1

    async def add_wholes(self, sql: "Sql") -> None:
        """Batches without keys that nobody touches: any look at the table sees all of one or nothing of it."""
        for turn in range(ROUNDS // 4):
            size = self.chance.randint(2, 6)
            specs = [{"identifier": "t", "payload": {"batch": str(turn), "size": size}, "max_attempts": 1}] * size
            async with sql.connection.transaction():
                await sql.add_many(*specs)
                # Out of attempts, so that the workers leave them.
                await sql.run(
                    "update graphile_worker._private_jobs set attempts = 1 where payload ->> 'batch' = $1", str(turn)
                )

    async def work(self, sql: "Sql", by: str, fails: bool) -> None:
        idle = False
        while self.busy or not idle:
            rows = await sql.rows(CLAIM, by)
            self.claimed.update((row["id"], row["revision"]) for row in rows)
            for row in rows:
                await sql.run(FAIL if fails and self.busy else FINISH, row["id"], by)
            idle = not rows

    async def administrate(self, sql: "Sql") -> None:
        while self.busy:
            ids = [
                row["id"]
                for row in await sql.rows("select id from graphile_worker._private_jobs where key is not null")
            ]
            ids = self.chance.sample(ids, min(len(ids), 2))
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                match self.chance.randint(0, 4):
                    case 0:
                        row = await sql.row("select * from graphile_worker.remove_job($1)", self.chance.choice(KEYS))
                        rows = [row] if row["id"] is not None else []
                    case 1:
                        rows = await sql.rows("select * from graphile_worker.complete_jobs($1)", ids)
                    case 2:
                        rows = await sql.rows("select * from graphile_worker.permanently_fail_jobs($1)", ids)
                    case 3:
                        await sql.rows("select * from graphile_worker.reschedule_jobs($1, priority => 3)", ids)
                        rows = []
                    case _:
                        await sql.rows("select graphile_worker.force_unlock_workers($1)", ["w1"])
                        rows = []
                self.taken_out.update((row["id"], row["revision"]) for row in rows)

    async def look(self, sql: "Sql") -> None:
        while self.busy:
            for row in await sql.rows(BATCHES):
                assert row["count"] == row["size"], f"a part of batch {row['batch']}"
            twice = (
                "select key from graphile_worker._private_jobs where key is not null group by key having count(*) > 1"
            )
            assert await sql.rows(twice) == []
            never = "select count(*) from graphile_worker._private_jobs where payload::text = '\"never\"'"
            assert await sql.value(never) == 0


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_torn_or_doubled(db: "Database", sql: "Sql", seed: int) -> None:
    world = World(seed)

    async def session() -> "Sql":
        return type(sql)(await db.connect(), db.schema)

    async with asyncio.TaskGroup() as everybody:
        for by, fails in (("w1", False), ("w2", True), ("w3", False)):
            everybody.create_task(world.work(await session(), by, fails))
        everybody.create_task(world.administrate(await session()))
        everybody.create_task(world.look(await session()))
        async with asyncio.TaskGroup() as adders:
            for who in range(4):
                adders.create_task(world.add(await session(), who))
            adders.create_task(world.add_refused(await session()))
            adders.create_task(world.add_wholes(await session()))
        world.busy = False

    rows = await sql.rows("select id, revision from graphile_worker._private_jobs")
    left = {(row["id"], row["revision"]) for row in rows}
    gone = world.added - world.claimed - world.taken_out - left
    assert {(job, revision) for job, revision in gone if (job, revision + 1) not in world.added} == set()
    assert world.refused == ROUNDS
    assert len(world.claimed) > len(KEYS)
    assert len(world.taken_out) > len(KEYS)
    assert await sql.value("select count(*) from graphile_worker._private_jobs where is_available") == 0
