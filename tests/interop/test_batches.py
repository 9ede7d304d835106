"""Batches that Node and we work off by turns: each leaves the other just the items that failed (C-028 to C-030)."""

import json
from typing import TYPE_CHECKING, Any

import asyncpg

from backfill import BackfillClient, JobSpec, WorkerConfig, WorkerRunner, task
from backfill.db import quote_ident

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode


@task("batch", batch=True)
async def batch(items: list[dict[str, Any]]) -> list[Exception | None]:
    return [OSError(f"item {item['n']} fails") if item.get("fails_here") else None for item in items]


async def left(connection: asyncpg.Connection, schema: str) -> tuple[list[int], int, str]:
    """The items of the only job, its attempts and error; it is made due."""
    row = await connection.fetchrow(
        f"update {quote_ident(schema)}._private_jobs set run_at = now() - interval '1 s'"
        " returning payload::text as items, attempts, last_error, locked_by"
    )
    assert row is not None
    assert row["locked_by"] is None
    return [item["n"] for item in json.loads(row["items"])], row["attempts"], row["last_error"]


async def test_items_go_back_and_forth(
    db: "Database", node: "StartNode", client: BackfillClient, runs: asyncpg.Connection
) -> None:
    peer = await node(db)
    config = WorkerConfig(database_url=db.dsn, schema=db.schema)
    first = [{"n": 1}, {"n": 2, "fails": True, "fails_here": True}]
    await peer.ask("addJob", "batch", first, {"jobKey": "k", "maxAttempts": 4})
    await client.enqueue(
        "batch", [{"n": 3, "fails": True}, {"n": 4, "fails_here": True}], JobSpec(job_key="k", max_attempts=4)
    )

    await peer.ask("runOnce", {"batches": ["batch"]})
    assert await left(runs, db.schema) == ([2, 3], 1, "Batch failures:\nitem 2 fails\nitem 3 fails")

    async with await WorkerRunner.builder(config).define_job(batch).build() as runner:
        assert await runner.process_available_jobs() == 1
        assert await left(runs, db.schema) == (
            [2],
            2,
            "ItemsFailedError: 1 of 2 items failed: [0] OSError: item 2 fails",
        )

        await peer.ask("runOnce", {"batches": ["batch"]})
        assert await left(runs, db.schema) == ([2], 3, "Batch failures:\nitem 2 fails")

        assert await runner.process_available_jobs() == 1
        (entry,) = (await client.list_dlq_jobs()).jobs
        assert entry.payload == [first[1]]
        assert "(4/4)" in entry.failure_reason
