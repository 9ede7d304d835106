"""Waiting for the database, or anything else that cannot call back."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

BETWEEN_LOOKS = 0.01  # seconds


async def until(condition: Callable[[], Any | Awaitable[Any]], what: str, *, limit: float = 30.0) -> Any:
    """Wait until the condition holds; what it gave.

    Args:
        condition: A function or coroutine function; anything true ends the wait.
        what: What is waited for, for the message.
        limit: Seconds after which the test fails.
    """
    try:
        async with asyncio.timeout(limit):
            while True:
                given = condition()
                found = await given if inspect.isawaitable(given) else given
                if found:
                    return found
                await asyncio.sleep(BETWEEN_LOOKS)
    except TimeoutError:
        raise AssertionError(f"after {limit:g} s still not: {what}") from None


async def until_alone(connection: asyncpg.Connection) -> None:
    """Wait until nobody else is connected to the connection's database: what the others did is then final."""

    async def alone() -> bool:
        return not await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )

    await until(alone, "no other backend works in the database")
