"""The connection that is kept between adds: nobody waits for it, and the pool has it back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import pytest
from tests.support.until import until

from backfill import BackfillClient
from backfill.db import Borrowed, Connection, Keeper, Pool, open_pool
from backfill.errors import DatabaseError

if TYPE_CHECKING:
    from tests.conftest import Database

R = TypeVar("R")


async def run(pool: Pool, keeper: Keeper, statement: Callable[[Connection], Awaitable[R]]) -> R:
    async with Borrowed(pool, "cannot try", keeper=keeper) as connection:
        return await statement(connection)


async def pid(connection: Connection) -> int:
    found = await connection.fetchval("select pg_backend_pid()")
    assert isinstance(found, int)
    return found


async def test_statements_that_follow_each_other_have_the_same_connection_and_the_pool_gets_it_back(
    db: "Database",
) -> None:
    pool = await open_pool(db.dsn, min_size=2, max_size=2)
    keeper = Keeper(pool)
    pids = {await run(pool, keeper, pid) for _ in range(5)}
    assert len(pids) == 1
    assert pool.get_idle_size() == 1, "it is kept"
    async with pool.acquire(timeout=30) as first, pool.acquire(timeout=30) as second:
        assert await pid(first) != await pid(second), "others get both"
    await keeper.close()
    await pool.close()


async def test_the_last_connection_of_a_pool_is_not_kept(db: "Database") -> None:
    pool = await open_pool(db.dsn, min_size=2, max_size=2)
    keeper = Keeper(pool)
    async with pool.acquire():
        await run(pool, keeper, pid)
        assert pool.get_idle_size() == 1
        await run(pool, keeper, pid)
    await keeper.close()
    assert pool.get_idle_size() == 2
    await pool.close()


async def test_statements_at_the_same_time_have_connections_of_their_own(db: "Database") -> None:
    pool = await open_pool(db.dsn, min_size=1, max_size=3)
    keeper = Keeper(pool)
    both_here = asyncio.Barrier(2)

    async def meet(connection: Connection) -> int:
        await both_here.wait()
        return await pid(connection)

    async with asyncio.timeout(30):
        assert len(set(await asyncio.gather(run(pool, keeper, meet), run(pool, keeper, meet)))) == 2
    await keeper.close()
    await pool.close()


async def test_a_statement_that_fails_gives_the_connection_back(db: "Database") -> None:
    pool = await open_pool(db.dsn, min_size=2, max_size=2)
    keeper = Keeper(pool)

    async def fail(connection: Connection) -> None:
        await connection.execute("select 1 / 0")

    await run(pool, keeper, pid)
    with pytest.raises(DatabaseError, match="division by zero"):
        await run(pool, keeper, fail)
    assert pool.get_idle_size() == 2
    await keeper.close()
    await pool.close()


async def test_a_kept_connection_that_was_ended_is_replaced(db: "Database") -> None:
    async with BackfillClient(db.dsn, db.schema) as client:
        await client.enqueue("t")
        other = await db.connect()
        await other.execute(
            "select pg_terminate_backend(pid, 30000) from pg_stat_activity"
            " where pid <> pg_backend_pid() and datname = current_database() and backend_type = 'client backend'"
        )

        async def added() -> bool:
            try:
                await client.enqueue("t")
            except DatabaseError:
                return False  # the end of it had not been noticed yet
            return True

        await until(added, "a job is added again")
