"""Random sequences of everything that can happen to jobs, against a model: no job is lost, doubled or run beside its queue.

The model is the places where jobs are: between two steps only such jobs may vanish as the step has finished, replaced or
removed, and none appears that was not there before.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.support.places import contradictions, places

from backfill.errors import KeyInUse
from backfill.model import JobKeyMode, JobSpec
from backfill.worker.reconcile import reconcile

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, Sql

    from backfill.client import BackfillClient

STEPS = 250
KEYS = ["a", "b", "c"]
QUEUES = [None, "p", "q"]


class World:
    """Two workers, their claimed jobs, and what may be done; each step gives the numbers of jobs that may vanish by it."""

    def __init__(self, seed: int, sql: "Sql", client: "BackfillClient", workers: list["Claims"]) -> None:
        self.chance = random.Random(seed)
        self.sql, self.client, self.workers = sql, client, workers
        self.held: list[tuple[Claims, str, asyncpg.Record]] = []
        self.added = 0

    async def numbers(self, where: str, *args: Any) -> set[int]:
        rows = await self.sql.rows(
            f"select (payload ->> 'job')::int as n from graphile_worker._private_jobs as jobs where {where}", *args
        )
        return {row["n"] for row in rows}

    async def enqueue(self) -> set[int]:
        key = self.chance.choice([None, None, *KEYS])
        # Whoever adds the key of a job again that came out of the dead letter queue unties it from its entry; documented.
        out = "select job_key from graphile_worker.backfill_dlq where requeued_job_id is not null"
        if key in {row["job_key"] for row in await self.sql.rows(out)}:
            return set()
        self.added += 1
        spec = JobSpec(
            job_key=key,
            job_key_mode=self.chance.choice([JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT]),
            queue=self.chance.choice(QUEUES),
            priority=self.chance.randint(-1, 1),
            max_attempts=self.chance.randint(1, 3),
        )
        replaced = await self.numbers("key = $1 and is_available", key)
        await self.client.enqueue("task", {"job": self.added}, spec)
        return replaced

    async def remove(self) -> set[int]:
        key = self.chance.choice(KEYS)
        removed = await self.numbers("key = $1 and locked_at is null", key)
        await self.client.remove_job(key)
        return removed

    async def claim(self) -> set[int]:
        claims = self.chance.choice(self.workers)
        rows = await claims.take(self.chance.randint(1, 4), self.chance.randint(4, 6))
        self.held += [(claims, claims.token, row) for row in rows]
        return set()

    async def complete(self) -> set[int]:
        claims, args, row = self.pick()
        done = await self.numbers("id = $1", row["id"])
        entry = await self.sql.rows(
            "select (earlier -> 'payload' ->> 'job')::int as n from graphile_worker.backfill_dlq,"
            " jsonb_array_elements(history) as earlier where requeued_job_id = $1",
            row["id"],
        )
        flags = row["flags"] or ""
        name = "release_completed_requeued" if "backfill:dlq" in flags else "release_completed"
        await claims.sql.named(name, *args, *[False])
        assert await self.numbers("id = $1", row["id"]) == set()
        return done | {earlier["n"] for earlier in entry}

    async def fail(self) -> set[int]:
        claims, args, row = self.pick()
        outcome = [row["key"] is not None], ["no"], ["{}"], [self.chance.random() < 0.7], [0.0]
        await claims.sql.named("release_failed", *args, *outcome, "w", self.chance.random() < 0.9, None, None, None)
        return set()

    async def hand_back(self) -> set[int]:
        claims, args, row = self.pick()
        superseded = await self.numbers("id = $1 and key is null", row["id"]) if row["key"] is not None else set()
        settings = [row["key"] is not None], [0.0], None, None, None, None, False
        await claims.sql.named("hand_back", *args, *settings)
        return superseded

    async def forget(self) -> set[int]:
        """A worker loses its memory, as after a claim whose reply is lost, and finds its locks again."""
        claims = self.chance.choice(self.workers)
        mine = [row["id"] for held_by, _, row in self.held if held_by is claims]
        self.held = [one for one in self.held if one[0] is not claims]
        superseded = await self.numbers("id = any($1) and key is null and updated_at > locked_at", mine)
        async with self.client.pool.acquire() as own:
            await reconcile(own, self.sql.schema, worker_id=claims.worker, lost_connection=None, held={}, on_lost=print)
        return superseded

    async def scan(self) -> set[int]:
        await self.client.process_failed_jobs()
        assert await self.numbers("attempts >= max_attempts and locked_at is null") == set()
        return set()

    async def requeue(self) -> set[int]:
        rows = await self.sql.rows("select id from graphile_worker.backfill_dlq where requeued_job_id is null")
        if rows:
            try:
                await self.client.requeue_dlq_job(self.chance.choice(rows)["id"])
            except KeyInUse:
                assert await self.sql.count("key is not null") > 0
        return set()

    def pick(self) -> tuple["Claims", tuple[Any, ...], asyncpg.Record]:
        """One of the jobs that are running, and what begins the arguments of its release."""
        claims, token, row = self.held.pop(self.chance.randrange(len(self.held)))
        queues = [] if row["queue_id"] is None else [row["queue_id"]]
        return claims, (queues, [token] * len(queues), [row["id"]], [token]), row

    def steps(self) -> Sequence[Callable[[], Awaitable[set[int]]]]:
        """What can happen now, the likely more than once."""
        always = [
            self.enqueue,
            self.enqueue,
            self.enqueue,
            self.claim,
            self.claim,
            self.remove,
            self.requeue,
            self.scan,
        ]
        return always + ([self.complete, self.fail, self.fail, self.hand_back, self.forget] if self.held else [])


@pytest.mark.parametrize("seed", range(6))
async def test_no_job_is_lost_or_doubled(
    sql: "Sql", client: "BackfillClient", make_claims: Callable[[str], Awaitable["Claims"]], seed: int
) -> None:
    world = World(seed, sql, client, [await make_claims("backfill-one"), await make_claims("backfill-two")])
    before: set[int] = set()
    taken: list[str] = []
    for _ in range(STEPS):
        step = world.chance.choice(world.steps())
        taken.append(step.__name__)
        added = world.added
        may_vanish = await step()
        found = await places(sql.connection, sql.schema)
        what = f"after {step.__name__}, step {len(taken)} of seed {seed}"
        assert [(number, where) for number, where in found.items() if len(where) > 1] == [], what
        new = set(range(added + 1, world.added + 1))
        assert found.keys() <= before | new, f"{what}: a job has come back"
        assert (before | new) - found.keys() <= may_vanish, f"{what}: a job is lost"
        assert await contradictions(sql.connection, sql.schema) == [], what
        assert await sql.count("locked_at is not null") == len(world.held), what
        before = set(found)
    assert len(set(taken)) == 9
    # All that is left can still be run to its end.
    for claims, token, row in world.held:
        queues = [row["queue_id"]] if row["queue_id"] is not None else []
        settings = [row["key"] is not None], [0.0], None, None, None, None, False
        args = queues, [token] * len(queues), [row["id"]], [token]
        await claims.sql.named("hand_back", *args, *settings)
    assert await sql.locks() == (0, 0)
