"""A keyed add that meets a claim of the key's job, on functions that Node installed: they give no row, and we ask again."""

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill import BackfillClient, JobKeyMode, JobSpec
from backfill.db import quote_ident

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode

BLOCKED = "select exists (select from pg_stat_activity where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0)"


@pytest.fixture
async def installed_by_node(empty_db: "Database", node: "StartNode") -> "Database":
    await (await node(empty_db)).ask("migrate")
    return empty_db


async def met_by_a_claim(database: "Database", adding: Any) -> Any:
    """Begin to claim the only job, start adding, and let the claim through when the add waits for it."""
    claimer, watcher = await database.connect(), await database.connect()
    async with claimer.transaction():
        await claimer.execute(
            f"update {quote_ident(database.schema)}._private_jobs"
            " set locked_at = now(), locked_by = 'pool-0123456789abcdef01', attempts = attempts + 1"
        )
        task = asyncio.ensure_future(adding)
        async with asyncio.timeout(30):
            while not await watcher.fetchval(BLOCKED):
                assert not task.done()
    return await task


async def jobs(connection: asyncpg.Connection, schema: str) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        f"select payload::text, key, locked_by is not null as locked, attempts = max_attempts as used_up"
        f" from {quote_ident(schema)}._private_jobs order by id"
    )
    return [tuple(row) for row in rows]


async def test_nodes_own_function_gives_a_row_of_nulls(installed_by_node: "Database") -> None:
    """What the tests below are about: it still does."""
    connection = await installed_by_node.connect()
    add = f"select * from {quote_ident(installed_by_node.schema)}.add_job('task', '2', job_key => 'k')"
    await connection.execute(add)
    row = await met_by_a_claim(installed_by_node, connection.fetchrow(add))
    assert set(row) == {None}


@pytest.mark.parametrize("mode", [JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT])
@pytest.mark.parametrize("how", ["enqueue", "enqueue_many", "mixed modes", "in a transaction"])
async def test_the_payload_is_in_a_successor(installed_by_node: "Database", mode: JobKeyMode, how: str) -> None:
    schema = installed_by_node.schema
    spec = JobSpec(job_key="k", job_key_mode=mode)
    connection = await installed_by_node.connect()
    async with BackfillClient(installed_by_node.dsn, schema=schema) as client:

        async def add() -> Any:
            match how:
                case "enqueue":
                    return await client.enqueue("task", 2, spec)
                case "enqueue_many":
                    return (await client.enqueue_many([("task", 2, spec)]))[0]
                case "mixed modes":
                    deduped = JobSpec(job_key="other", job_key_mode=JobKeyMode.UNSAFE_DEDUPE)
                    return (await client.enqueue_many([("task", 3, deduped), ("task", 2, spec)]))[1]
                case _:
                    async with connection.transaction():
                        return await client.enqueue("task", 2, spec, connection=connection)

        first = (await client.enqueue("task", 1, spec)).unwrap()
        second = (await met_by_a_claim(installed_by_node, add())).unwrap()
        assert (second.id != first.id, second.key, second.payload) == (True, "k", 2)
    rows = [row for row in await jobs(connection, schema) if row[1] != "other"]
    assert rows == [("1", None, True, True), ("2", "k", False, False)]
