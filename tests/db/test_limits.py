"""What a session's limits are on both sides, and how the operating systems watch its connection."""

import dataclasses
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import asyncpg
import pytest

from backfill.db import CALL, CLAIM, RELEASE, Limit, Session, connect, open_pool, overran, way
from backfill.db.limits import TCP, Tcp
from backfill.embedded import EmbeddedServer

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tcp=True) as server:
        yield server


@pytest.fixture(autouse=True)
def no_way_is_known() -> None:
    way.way_to.cache_clear()


@pytest.mark.parametrize(
    ("limit", "statement", "lock"),
    [(CLAIM, "15s", "0"), (RELEASE, "30s", "200ms"), (CALL, "0", "0"), (Limit("mine", 0.25), "250ms", "0")],
)
async def test_the_server_knows_the_limit(empty_db: "Database", limit: Limit, statement: str, lock: str) -> None:
    connection = await connect(empty_db.dsn, limit=limit)
    try:
        assert await connection.fetchval("show statement_timeout") == statement
        assert await connection.fetchval("show lock_timeout") == lock
    finally:
        await connection.close()


async def test_the_server_ends_a_statement_and_the_error_can_name_the_limit(empty_db: "Database") -> None:
    limit = Limit("tiny", 0.02)
    connection = await connect(empty_db.dsn, limit=limit)
    try:
        with pytest.raises(asyncpg.QueryCanceledError) as caught:
            await connection.fetchval("select pg_sleep(60)")
    finally:
        await connection.close()
    told = overran(caught.value, "nap", limit)
    assert isinstance(told, asyncpg.QueryCanceledError)
    assert told.sqlstate == "57014"
    assert str(told).endswith("(statement nap, limit tiny: 0.02 s)")


def test_an_error_that_is_no_limit_is_left_alone() -> None:
    assert overran(ValueError(), "nap", CLAIM) is None
    assert overran(TimeoutError(), "nap", None) is None
    assert str(overran(TimeoutError(), "nap", CLAIM)) == "no answer to the statement nap within 18 s (limit claim)"


async def test_both_ends_of_a_tcp_connection_notice_a_peer_that_is_gone(tcp_server: EmbeddedServer) -> None:
    async with await open_pool(tcp_server.dsn()) as pool, pool.acquire() as connection:
        shown = {name: await connection.fetchval(f"show {name}") for name in TCP.settings()}
        assert shown == {
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": "10000",
            "client_connection_check_interval": "2s",
        }
        session: Session = connection._con  # type: ignore[attr-defined]  # the connection behind the pool's proxy
        ours: socket.socket = session._transport.get_extra_info("socket")
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        numbers = [getattr(socket, name) for name in options if hasattr(socket, name)]
        found = [ours.getsockopt(socket.IPPROTO_TCP, number) for number in numbers]
        assert found == [10, 5, 3, 10_000][: len(numbers)]


async def test_a_unix_socket_needs_none_of_it(empty_db: "Database") -> None:
    connection = await connect(empty_db.dsn)
    try:
        assert await connection.fetchval("show tcp_user_timeout") == "0"
        assert await connection.fetchval("show client_connection_check_interval") == "2s"
    finally:
        await connection.close()


async def test_a_server_that_cannot_check_its_client_is_not_asked_to(
    empty_db: "Database", monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd(Tcp):
        def settings(self) -> dict[str, str]:
            return {**super().settings(), "client_connection_check_interval": "not here"}

    monkeypatch.setattr(way, "TCP", Odd(**dataclasses.asdict(TCP)))
    for _ in range(2):
        connection = await connect(empty_db.dsn)
        assert await connection.fetchval("show client_connection_check_interval") == "0"
        await connection.close()
