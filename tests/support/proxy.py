"""A proxy before a PostgreSQL server that knows the protocol's messages, to break connections at an exact place.

It listens on a unix socket of its own and passes on whole messages. A **rule** sees each message that a client sends and
says whether to **strike** before it is passed on, or after the server has answered it. From then on nothing more of that
session passes, in either direction, until the strike (a coroutine of the test) returns: it may kill the client, cut
connections, or wait and so hold an answer back.

A server sends most answers only when a Sync comes. To have the answer to any message, the proxy then adds a Flush of its
own, which ends no transaction: so "after Execute" is a state with the statement carried out and not yet committed.
"""

import asyncio
import contextlib
import shutil
import struct
import tempfile
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Self
from urllib.parse import parse_qs, quote, urlsplit

STARTUP = "startup"
PORT = 5432  # only a part of the socket's file name
FLUSH = b"H\x00\x00\x00\x04"
CHUNK = 1 << 16  # bytes read at once
PROTOCOL_3 = 3  # major version in a startup message; cancel and encryption requests have another number there

# By the type of a client's message: the server's messages that end its answer. No entry: there is no answer.
ANSWERS = {
    STARTUP: "ZER",
    "p": "ZER",
    "Q": "Z",
    "F": "Z",
    "S": "Z",
    "P": "1",
    "B": "2",
    "D": "Tn",
    "E": "CIs",
    "C": "3",
}
SELF_ANSWERING = frozenset({STARTUP, "p", "Q", "F", "S"})
SKIPPED_AFTER_ERROR = frozenset("PBDEC")  # until the next Sync
NEEDS_RESPONSE = frozenset({3, 5, 7, 8, 9, 10, 11})  # authentication requests that the client must reply to


class Sent(NamedTuple):
    """A message that a client has sent.

    Attributes:
        role: What the client's application_name says behind its last colon.
        number: Its place among all messages of that role, from 1.
        kind: Its type: the protocol's letter, or ``startup``.
        sql: The SQL that it is about, where it is about one; a Sync is about the SQL executed before it.
    """

    role: str
    number: int
    kind: str
    sql: str


Rule = Callable[[Sent], Literal["before", "after"] | None]
Strike = Callable[["Session"], Awaitable[None]]


class Framer:
    """Cuts a stream of bytes into the protocol's messages."""

    def __init__(self, *, begins_with_startup: bool) -> None:
        self._buffer = b""
        self._startup = begins_with_startup

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Take more bytes; give the type and the whole of each message that is complete."""
        self._buffer += data
        while True:
            head = 0 if self._startup else 1
            if len(self._buffer) < head + 4:
                return
            end = head + struct.unpack_from("!I", self._buffer, head)[0]
            if len(self._buffer) < end:
                return
            message, self._buffer = self._buffer[:end], self._buffer[end:]
            kind, self._startup = STARTUP if self._startup else chr(message[0]), False
            yield kind, message


@dataclass(eq=False)
class Awaited:
    """A message whose answer is outstanding; `answered` is there if the proxy waits for it."""

    kind: str
    answered: asyncio.Event | None = None


class Session:
    """One client's connection, and the proxy's own to the server for it.

    Attributes:
        role: What the client's application_name says behind its last colon.
        is_cut: Whether the proxy has cut it.
    """

    def __init__(
        self, proxy: "Proxy", client: tuple[asyncio.StreamReader, asyncio.StreamWriter], role: str = ""
    ) -> None:
        self.role = role
        self.is_cut = False
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server: asyncio.StreamReader
        self._to_server: asyncio.StreamWriter | None = None
        self._outstanding: deque[Awaited] = deque()
        self._held: list[bytes] | None = None
        self._prepared: dict[bytes, str] = {}
        self._bound: dict[bytes, str] = {}
        self._sql = ""

    def cut(self) -> None:
        """Break both connections; what was not passed on yet is lost."""
        self.is_cut = True
        for writer in (self._to_client, self._to_server):
            if writer is not None:
                writer.transport.abort()

    def hang_up(self) -> None:
        """Break the client's connection only: what it has sent is still on its way to the server."""
        self._to_client.transport.abort()

    async def run(self) -> None:
        """Pass messages on until one side ends."""
        self._from_server, self._to_server = await self._proxy.connect()
        down = asyncio.create_task(self._pass_down())
        try:
            await self._pass_up(self._to_server)
        finally:
            # The client is gone or cut. Its server must see that at once, and the other direction ends by it.
            self._to_server.close()
            await down
            self._to_client.close()

    async def _pass_up(self, to_server: asyncio.StreamWriter) -> None:
        framer = Framer(begins_with_startup=True)
        while data := await self._from_client.read(CHUNK):
            ready: list[bytes] = []  # what the client sends at once, the server gets at once
            for kind, message in framer.feed(data):
                if kind == STARTUP and not self._is_plain_startup(message):
                    ready.append(message)  # a request to cancel: it has no answer and is not counted
                    continue
                when = self._proxy.rule(self._seen(kind, message))
                if when == "before":
                    _flush(to_server, ready)
                    await self._proxy.strike(self)
                    if self.is_cut:
                        return
                awaited = Awaited(kind, asyncio.Event() if when == "after" else None)
                if kind in ANSWERS:
                    self._outstanding.append(awaited)
                ready.append(message)
                if awaited.answered is not None:
                    if kind not in SELF_ANSWERING:
                        ready.append(FLUSH)
                    _flush(to_server, ready)
                    await self._hold(kind, awaited.answered)
                    if self.is_cut:
                        return
            _flush(to_server, ready)

    def _is_plain_startup(self, message: bytes) -> bool:
        if struct.unpack_from("!H", message, 4)[0] != PROTOCOL_3:
            return False
        words = message[8:].split(b"\0")
        named = dict(zip(words[::2], words[1::2], strict=False))
        self.role = named.get(b"application_name", b"").decode().rpartition(":")[2]
        return True

    async def _hold(self, kind: str, answered: asyncio.Event) -> None:
        """Wait for a message's answer, keep it back and strike."""
        if kind in ANSWERS:
            await answered.wait()
        await self._proxy.strike(self)
        held, self._held = self._held or [], None
        _flush(self._to_client, held)
        if self._from_server.at_eof() and not self.is_cut:
            self._to_client.close()

    async def _pass_down(self) -> None:
        framer = Framer(begins_with_startup=False)
        try:
            while data := await self._from_server.read(CHUNK):
                ready: list[bytes] = []
                for kind, message in framer.feed(data):
                    if self._held is None and self._outstanding and self._outstanding[0].answered is not None:
                        self._held = []
                    (ready if self._held is None else self._held).append(message)
                    self._account(kind, message)
                _flush(self._to_client, ready)
        except ConnectionError:
            pass  # the server was killed, or we have cut: the same end
        finally:
            for awaited in self._outstanding:
                if awaited.answered is not None:
                    awaited.answered.set()
            if self._held is None:
                self._to_client.close()

    def _account(self, kind: str, message: bytes) -> None:
        """Note which client's messages a message of the server answers."""
        if not self._outstanding:
            return
        first = self._outstanding[0]
        if kind == "E" and first.kind in SKIPPED_AFTER_ERROR:
            while self._outstanding and self._outstanding[0].kind in SKIPPED_AFTER_ERROR:
                self._answered()
        elif kind in ANSWERS[first.kind] and (kind != "R" or struct.unpack_from("!I", message, 5)[0] in NEEDS_RESPONSE):
            self._answered()

    def _answered(self) -> None:
        awaited = self._outstanding.popleft()
        if awaited.answered is not None:
            awaited.answered.set()

    def _seen(self, kind: str, message: bytes) -> Sent:
        """Count a client's message, and find out which SQL it is about."""
        sql = ""
        if kind == "P":
            name, text, *_ = message[5:].split(b"\0", 2)
            sql = self._prepared[name] = text.decode()
        elif kind == "Q":
            sql = message[5:-1].decode()
        elif kind == "B":
            portal, name, *_ = message[5:].split(b"\0", 2)
            sql = self._bound[portal] = self._prepared.get(name, "")
        elif kind == "D":
            names = self._prepared if message[5:6] == b"S" else self._bound
            sql = names.get(message[6:-1], "")
        elif kind == "E":
            sql = self._sql = self._bound.get(message[5:].split(b"\0", 1)[0], "")
        elif kind == "S":
            sql, self._sql = self._sql, ""
        counts = self._proxy.counts
        counts[self.role] += 1
        return Sent(self.role, counts[self.role], kind, sql)


def _flush(writer: asyncio.StreamWriter, messages: list[bytes]) -> None:
    """Pass messages on, unless the connection has ended; the list is empty afterwards."""
    if messages and not writer.is_closing():
        writer.writelines(messages)
    messages.clear()


class Proxy:
    """Listens for clients in an `async with` block.

    Attributes:
        dsn: What clients connect to.
        counts: Messages that clients have sent, by role.
        rule: Whether and when to strike; may be replaced at any time.
        sessions: The open ones.
    """

    def __init__(self, dsn: str, rule: Rule = lambda _: None, strike: Strike | None = None) -> None:
        """Prepare it.

        Args:
            dsn: The server's URL; its host may be a folder with a unix socket.
            rule: Whether and when to strike.
            strike: What then happens; without it the session is cut.
        """
        parts = urlsplit(dsn)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._host = options.get("host") or parts.hostname or "localhost"
        self._port = int(options.get("port") or parts.port or PORT)
        self._folder = tempfile.mkdtemp(prefix="bf")  # pytest's tmp_path can be too long for a socket's path
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self.dsn = f"{parts.scheme}://{user}{parts.path}?host={quote(self._folder)}&port={PORT}"
        self.counts: Counter[str] = Counter()
        self.rule = rule
        self.sessions: set[Session] = set()
        self._strike = strike
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, f"{self._folder}/.s.PGSQL.{PORT}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()  # one whose strike has not returned
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def cut(self, role: str | None = None) -> int:
        """Cut the sessions of a role, or all of them; how many there were."""
        chosen = [session for session in self.sessions if role in (None, session.role)]
        for session in chosen:
            session.cut()
        return len(chosen)

    async def strike(self, session: Session) -> None:
        """Do what the test wants done when the rule's message has come."""
        if self._strike is None:
            session.cut()
        else:
            await self._strike(session)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(self, (reader, writer))
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.sessions.add(session)
        try:
            # A server that is away, a cut, or the end of the test.
            with contextlib.suppress(ConnectionError, FileNotFoundError, asyncio.CancelledError):
                await session.run()
        finally:
            session.cut()
            self.sessions.discard(session)
            self._tasks.discard(task)
