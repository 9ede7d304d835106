"""Jobs of all sorts without end, for a fleet that is put to the test."""

import asyncio
import random
from typing import Final

import asyncpg
from tests.support.ledger import Added, enqueue

from backfill.client import BackfillClient
from backfill.model import JobSpec, Queue, RetryPolicy
from backfill.sql import with_schema

SOON: Final = RetryPolicy(3, 0.05, 0.5, 2.0, 0.1)
MOST_WAITING: Final = 400  # jobs; above, nothing is added
WAITING: Final = "select count(*) from graphile_worker._private_jobs"


async def produce(client: BackfillClient, connection: asyncpg.Connection, schema: str, chance: random.Random) -> None:
    """Add jobs in batches, those of a serial queue one after the other, until cancelled or the database fails.

    Args:
        client: Adds them.
        connection: In whose transactions.
        schema: The schema.
        chance: Decides what they are.
    """
    while True:
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        if await connection.fetchval(with_schema(WAITING, schema)) < MOST_WAITING:
            await enqueue(client, [any_job(chance) for _ in range(chance.randint(1, 40))], connection)


def any_job(chance: random.Random) -> Added:
    """One job. Few kill their worker, and few run for so long that they are in many workers that are killed."""
    pick = chance.random()
    queue = Queue.serial(f"q{chance.randrange(6)}") if chance.random() < 0.3 else Queue.parallel()
    spec = JobSpec(max_attempts=25, retry_policy=SOON, queue=queue, priority=chance.choice((-10, 0, 0, 10)))
    if pick < 0.05:
        return "work", {"refuses": True}, spec, "dead"
    if pick < 0.15:
        return "work", {"fails": chance.randint(1, 2)}, spec, "done"
    if pick < 0.153:
        return "dies_once", chance.choice(("exit", "segfault")), JobSpec(max_attempts=25), "either"
    if pick < 0.16:
        return "work", {"seconds": chance.uniform(4, 12)}, JobSpec(max_attempts=25), "either"
    return "work", {"seconds": chance.choice((0, 0, 0, 0.2, 1.0))}, spec, "done"
