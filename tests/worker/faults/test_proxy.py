"""The proxy of these tests strikes exactly where it says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until_alone

from backfill.embedded import EmbeddedServer

INSERT = "insert into seen values ($1)"


@pytest.fixture
async def seen(empty_db: Any) -> Any:
    """A connection past the proxy, in a database with a table `seen`."""
    connection = await empty_db.connect()
    await connection.execute("create table seen (number int)")
    return connection


async def insert(proxy: Proxy) -> None:
    connection = await asyncpg.connect(proxy.dsn, server_settings={"application_name": "me:inserts"})
    try:
        await connection.execute(INSERT, 1)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("kind", "when", "arrives"),
    [
        ("P", "before", False),
        ("P", "after", False),
        ("B", "after", False),
        ("E", "before", False),
        ("E", "after", False),
        ("S", "before", False),
        ("S", "after", True),
    ],
)
async def test_a_statement_is_done_if_its_sync_was_answered(
    empty_db: Any, seen: asyncpg.Connection, kind: str, when: Any, arrives: bool
) -> None:
    def rule(sent: Sent) -> Any:
        return when if (sent.kind, sent.sql) == (kind, INSERT) else None

    async with Proxy(empty_db.dsn, rule) as proxy:
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
            await insert(proxy)
    await until_alone(seen)
    assert await seen.fetchval("select count(*) from seen") == arrives


async def test_what_the_server_has_done_can_be_seen_before_the_client_is_told(
    empty_db: Any, seen: asyncpg.Connection
) -> None:
    counted: list[int] = []

    async def strike(_: Session) -> None:
        counted.append(await seen.fetchval("select count(*) from seen"))

    def rule(sent: Sent) -> Any:
        return "after" if (sent.kind, sent.sql) == ("S", INSERT) else None

    async with Proxy(empty_db.dsn, rule, strike) as proxy:
        await insert(proxy)  # the strike cut nothing, so it goes on
    assert counted == [1]


async def test_each_role_counts_its_messages_from_one(empty_db: Any, seen: asyncpg.Connection) -> None:
    noted: list[tuple[str, int, str]] = []

    def rule(sent: Sent) -> None:
        noted.append((sent.role, sent.number, sent.kind))

    async with Proxy(empty_db.dsn, rule) as proxy:
        await asyncio.gather(insert(proxy), insert(proxy))
        other = await asyncpg.connect(proxy.dsn, server_settings={"application_name": "other"})
        await other.close()
    mine = [(number, kind) for role, number, kind in noted if role == "inserts"]
    assert [number for number, _ in mine] == list(range(1, len(mine) + 1))
    assert sorted(kind for _, kind in mine) == sorted(2 * ["startup", "P", "D", "H", "B", "E", "S", "X"])
    assert [entry[1:] for entry in noted if entry[0] == "other"] == [(1, "startup"), (2, "X")]


async def test_an_error_of_the_server_is_an_answer(empty_db: Any, seen: asyncpg.Connection) -> None:
    struck: list[Sent] = []

    def rule(sent: Sent) -> Any:
        if sent.kind == "E" and sent.sql.startswith("select 1 /"):
            struck.append(sent)
            return "after"
        return None

    async def strike(_: Session) -> None:
        """Let it go on."""

    async with Proxy(empty_db.dsn, rule, strike) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("select 1 / $1::int", 0)
        assert await connection.fetchval("select $1::int", 2) == 2
        await connection.close()
    assert len(struck) == 1


async def test_a_server_that_goes_away_is_a_client_s_lost_connection(empty_db: Any, seen: asyncpg.Connection) -> None:
    async with Proxy(empty_db.dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await seen.execute("select pg_terminate_backend($1)", connection.get_server_pid())
        await asyncio.wait_for(lost.wait(), 10)
        await connection.close()


@pytest.fixture
async def tcp_dsn() -> AsyncIterator[str]:
    """A server that is reached by TCP and asks for a password."""
    server = await asyncio.to_thread(EmbeddedServer(tcp=True).start)
    yield server.dsn()
    await asyncio.to_thread(server.stop)


async def test_each_message_of_a_password_s_exchange_has_its_answer(tcp_dsn: str) -> None:
    for number in (1, 2, 3):
        sent: list[str] = []

        def rule(message: Sent, strike_at: int = number, sent: list[str] = sent) -> Any:
            sent.append(message.kind)
            return "after" if message.number == strike_at else None

        async with Proxy(tcp_dsn, rule) as proxy:
            with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
                await asyncpg.connect(proxy.dsn)
        assert sent == ["startup", "p", "p"][:number]
    async with Proxy(tcp_dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        assert await connection.fetchval("select 1") == 1
        await connection.close()
