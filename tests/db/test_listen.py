import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from backfill.db import Listener, Session, connect
from backfill.db.listen import _pause

if TYPE_CHECKING:
    from tests.conftest import Database

CHANNEL = "jobs:insert"
LIMIT = 30.0


class Ears:
    """A listener, what it heard, and its connections."""

    def __init__(self, opener: Callable[[], Awaitable[Session]], **options: Any) -> None:
        self.heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.ups = 0
        self.came_up = asyncio.Event()
        self.connections: list[asyncpg.Connection] = []
        self._opener = opener
        self.listener = Listener(self._open, [CHANNEL], self._hear, on_up=self._up, **options)

    async def _open(self) -> Session:
        connection = await self._opener()
        self.connections.append(connection)
        return connection

    def _hear(self, channel: str, payload: str) -> None:
        self.heard.put_nowait((channel, payload))

    def _up(self) -> None:
        self.ups += 1
        self.came_up.set()

    async def until_up(self, times: int) -> None:
        async with asyncio.timeout(LIMIT):
            while self.ups < times:
                self.came_up.clear()
                await self.came_up.wait()


@contextlib.asynccontextmanager
async def listening(opener: Callable[[], Awaitable[Session]], **options: Any) -> AsyncIterator[Ears]:
    ears = Ears(opener, **options)
    await ears.listener.start()
    try:
        yield ears
    finally:
        await ears.listener.close()


async def notify(connection: asyncpg.Connection, payload: str) -> None:
    await connection.execute("select pg_notify($1, $2)", CHANNEL, payload)


async def test_notifications_are_handed_on_once_it_is_proven(empty_db: "Database") -> None:
    other = await empty_db.connect()
    async with listening(lambda: connect(empty_db.dsn)) as ears:
        await ears.listener.wait_proven()
        assert ears.listener.proven
        assert (ears.listener.connected_count, ears.ups) == (1, 1)
        await notify(other, "one")
        await notify(other, "")
        await other.execute("notify elsewhere, 'two'")
        await notify(other, "three")
        async with asyncio.timeout(LIMIT):
            assert [await ears.heard.get() for _ in range(3)] == [(CHANNEL, "one"), (CHANNEL, ""), (CHANNEL, "three")]
        assert ears.heard.empty()


async def test_it_is_not_proven_before_it_starts_nor_after_it_closes(empty_db: "Database") -> None:
    other = await empty_db.connect()
    ears = Ears(lambda: connect(empty_db.dsn))
    assert not ears.listener.proven
    await ears.listener.close()
    await ears.listener.start()
    await ears.listener.start()
    await ears.listener.wait_proven()
    await ears.listener.close()
    assert not ears.listener.proven
    assert len(ears.connections) == 1
    assert ears.connections[0].is_closed()
    await ears.listener.close()
    await notify(other, "nobody hears")
    assert ears.heard.empty()


async def test_it_comes_back_after_its_backend_is_ended(empty_db: "Database", caplog: pytest.LogCaptureFixture) -> None:
    other = await empty_db.connect()
    with caplog.at_level(logging.INFO, "backfill"):
        async with listening(lambda: connect(empty_db.dsn)) as ears:
            for round_ in (1, 2, 3):
                await ears.until_up(round_)
                assert ears.listener.proven
                assert ears.listener.connected_count == round_
                await notify(other, str(round_))
                async with asyncio.timeout(LIMIT):
                    assert await ears.heard.get() == (CHANNEL, str(round_))
                if round_ < 3:
                    pid = ears.connections[-1].get_server_pid()
                    await other.execute("select pg_terminate_backend($1)", pid)
    assert caplog.text.count("LISTEN is down, polling goes on") == 2
    assert caplog.text.count("LISTEN is up again") == 2


async def test_a_doubt_is_settled_at_once(empty_db: "Database") -> None:
    async with listening(lambda: connect(empty_db.dsn), check_interval=3600.0) as ears:
        await ears.until_up(1)
        await ears.connections[0].execute("unlisten *")
        ears.listener.doubt()
        await ears.until_up(2)


async def test_it_keeps_trying_to_connect(empty_db: "Database") -> None:
    attempts = 0

    async def opener() -> Session:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            raise RuntimeError("not foreseen")
        if attempts < 4:
            return await connect("postgresql:///x?host=/nowhere/at/all")
        return await connect(empty_db.dsn)

    async with listening(opener) as ears:
        await ears.until_up(1)
    assert attempts == 4
    assert ears.listener.connected_count == 1


async def test_a_session_that_no_longer_listens_is_found_out(empty_db: "Database") -> None:
    async with listening(lambda: connect(empty_db.dsn), check_interval=0.2) as ears:
        await ears.until_up(1)
        await ears.connections[0].execute("unlisten *")
        await ears.until_up(2)
    assert ears.connections[0].is_closed()


async def test_the_proof_is_repeated(empty_db: "Database") -> None:
    other = await empty_db.connect()
    sent = asyncio.Event()
    async with listening(lambda: connect(empty_db.dsn), check_interval=0.01) as ears:
        await ears.until_up(1)
        channels = await other.fetch("select 1")
        assert channels
        # the proofs go to a channel of the listener's own, which anybody may hear
        own = ears.listener._own_channel
        await other.add_listener(own, lambda *_: sent.set())
        async with asyncio.timeout(LIMIT):
            await sent.wait()
        assert ears.listener.proven
    assert ears.listener.connected_count == 1


class Wire:
    """Passes bytes on between clients and the server, until it is cut: then it swallows them and says nothing."""

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)
        self._query = {key: values[-1] for key, values in parse_qs(self._parts.query).items()}
        self.is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def dsn(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        user = self._parts.username or self._query.get("user", "postgres")
        password = f":{self._parts.password}" if self._parts.password else ""
        return f"postgresql://{user}{password}@127.0.0.1:{port}{self._parts.path}?sslmode=disable"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = self._query.get("host") or self._parts.hostname or "localhost"
        port = int(self._query.get("port") or self._parts.port or 5432)
        if host.startswith("/"):
            there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there = await asyncio.open_connection(host, port)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self.is_cut:
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


async def test_a_half_open_connection_is_found_out(empty_db: "Database") -> None:
    async with Wire(empty_db.dsn) as wire, Wire(empty_db.dsn) as another:
        wires = [wire, another]

        async def opener() -> Session:
            return await connect(wires.pop(0).dsn)

        async with listening(opener, check_interval=0.05, check_timeout=0.3) as ears:
            await ears.until_up(1)
            wire.is_cut = True
            await ears.until_up(2)
            assert ears.listener.proven
            assert ears.connections[0].is_closed()


def test_pauses_grow_to_ten_seconds_and_differ() -> None:
    for failures, longest in [(0, 0.1), (1, 0.2), (3, 0.8), (6, 6.4), (7, 10), (100_000, 10)]:
        pauses = {_pause(failures) for _ in range(200)}
        assert len(pauses) > 100
        assert longest / 2 <= min(pauses)
        assert max(pauses) <= longest
