"""Tasks whose rows somebody else makes at the moment a worker starts."""

import asyncio
from typing import Any

from backfill.sql import text, with_schema


async def test_a_row_made_at_the_same_moment_is_known(db: Any) -> None:
    other, worker, observer = [await db.connect() for _ in range(3)]
    transaction = other.transaction()
    await transaction.start()
    insert = "insert into graphile_worker._private_tasks (identifier) values ('shared') returning id"
    made = await other.fetchval(with_schema(insert, db.schema))
    registering = asyncio.create_task(worker.fetch(text("register_tasks", db.schema), ["own", "shared"]))
    pid = worker.get_server_pid()
    async with asyncio.timeout(30):
        while not await observer.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid):
            await asyncio.sleep(0)
    await transaction.commit()
    found = {row["identifier"]: row["id"] for row in await registering}
    assert found.keys() == {"own", "shared"}
    assert found["shared"] == made
