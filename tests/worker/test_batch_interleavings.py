"""Random sequences of everything that can happen to batches under keys: each item is in one place until it is done or removed."""

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill.errors import KeyInUse
from backfill.model import JobSpec

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, Sql

    from backfill.client import BackfillClient

STEPS = 200
KEYS = ["a", "b"]


class Items:
    """Two workers and the batches that they run; steps say which items they have made an end of."""

    def __init__(self, seed: int, sql: "Sql", client: "BackfillClient", workers: list["Claims"]) -> None:
        self.chance = random.Random(seed)
        self.sql, self.client, self.workers = sql, client, workers
        self.held: list[tuple[Claims, str, asyncpg.Record]] = []
        self.added = 0

    async def places(self) -> Counter[int]:
        """How often each item is in the queue or in the dead letter queue; what is out of it is in the queue."""
        rows = await self.sql.rows(
            "select payload::jsonb as items from graphile_worker._private_jobs"
            " union all select payload from graphile_worker.backfill_dlq where requeued_job_id is null"
        )
        return Counter(item for row in rows for item in json.loads(row["items"]))

    async def add(self) -> set[int]:
        key = self.chance.choice([*KEYS, *KEYS, None])
        out = "select job_key from graphile_worker.backfill_dlq where requeued_job_id is not null"
        if key in {row["job_key"] for row in await self.sql.rows(out)}:
            return set()
        items = [self.added + number for number in range(1, self.chance.randint(1, 3) + 1)]
        self.added = items[-1]
        spec = JobSpec(job_key=key, max_attempts=self.chance.randint(1, 3), queue=self.chance.choice([None, "q"]))
        await self.client.enqueue("task", items, spec)
        return set()

    async def remove(self) -> set[int]:
        key = self.chance.choice(KEYS)
        rows = await self.sql.rows(
            "select payload::text as items from graphile_worker._private_jobs as jobs where key = $1 and locked_at is null"
            " and not exists (select from graphile_worker.backfill_dlq where requeued_job_id = jobs.id)",  # its entry is back
            key,
        )
        await self.client.remove_job(key)
        return {item for row in rows for item in json.loads(row["items"])}

    async def claim(self) -> set[int]:
        claims = self.chance.choice(self.workers)
        rows = await claims.take(self.chance.randint(1, 3))
        self.held += [(claims, claims.token, row) for row in rows]
        return set()

    async def complete(self) -> set[int]:
        claims, args, row = self.pick()
        await claims.sql.named("release_completed_requeued", *args, *[False])
        return set(json.loads(row["payload"]))

    async def fail(self) -> set[int]:
        claims, args, row = self.pick()
        items = json.loads(row["payload"])
        left = [item for item in items if self.chance.random() < 0.7] or items
        outcome = [row["key"] is not None], ["no"], ["{}"], [self.chance.random() < 0.8], [0.0]
        payloads = [json.dumps(left)] if left != items else None
        bury = self.chance.random() < 0.9
        await claims.sql.named("release_failed", *args, *outcome, "w", bury, payloads, *self.added_to(row))
        return set(items) - set(left)

    async def hand_back(self) -> set[int]:
        claims, args, row = self.pick()
        settings = [row["key"] is not None], [0.0], *self.added_to(row), None, None, False
        await claims.sql.named("hand_back", *args, *settings)
        return set()

    async def scan(self) -> set[int]:
        await self.client.process_failed_jobs()
        return set()

    async def requeue(self) -> set[int]:
        rows = await self.sql.rows("select id from graphile_worker.backfill_dlq where requeued_job_id is null")
        if rows:
            try:
                await self.client.requeue_dlq_job(self.chance.choice(rows)["id"])
            except KeyInUse:
                assert await self.sql.count("key is not null") > 0
        return set()

    def added_to(self, row: asyncpg.Record) -> tuple[Any, Any]:
        """As the releaser says it."""
        return ([row["key"]], [row["attempts"]]) if row["key"] is not None else (None, None)

    def pick(self) -> tuple["Claims", tuple[Any, ...], asyncpg.Record]:
        claims, token, row = self.held.pop(self.chance.randrange(len(self.held)))
        queues = [] if row["queue_id"] is None else [row["queue_id"]]
        return claims, (queues, [token] * len(queues), [row["id"]], [token]), row

    def steps(self) -> Sequence[Callable[[], Awaitable[set[int]]]]:
        always = [self.add, self.add, self.add, self.claim, self.claim, self.remove, self.requeue, self.scan]
        return always + ([self.complete, self.fail, self.fail, self.hand_back] if self.held else [])


@pytest.mark.parametrize("seed", range(6))
async def test_no_item_is_lost_or_doubled(
    sql: "Sql", client: "BackfillClient", make_claims: Callable[[str], Awaitable["Claims"]], seed: int
) -> None:
    world = Items(seed, sql, client, [await make_claims("backfill-one"), await make_claims("backfill-two")])
    before: set[int] = set()
    taken: set[str] = set()
    for number in range(STEPS):
        step = world.chance.choice(world.steps())
        taken.add(step.__name__)
        added = world.added
        ended = await step()
        found = await world.places()
        what = f"after {step.__name__}, step {number} of seed {seed}"
        assert [item for item, times in found.items() if times > 1] == [], f"{what}: an item is there twice"
        assert set(found) == (before | set(range(added + 1, world.added + 1))) - ended, what
        assert await sql.count("locked_at is not null") == len(world.held), what
        before = set(found)
    assert len(taken) == 8
