"""A TCP proxy that counts round trips: how often the client speaks after the server has."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Turns:
    """Stands between clients and a server. An async context manager.

    Attributes:
        count: Round trips so far, of all connections.
    """

    def __init__(self, dsn: str) -> None:
        self.count = 0
        self._server = urlsplit(dsn)
        self._listener: asyncio.Server | None = None

    @property
    def dsn(self) -> str:
        """The way through the proxy."""
        assert self._listener is not None
        port = self._listener.sockets[0].getsockname()[1]
        user = self._server.netloc.rpartition("@")[0]
        return urlunsplit(self._server._replace(netloc=f"{user}@127.0.0.1:{port}"))

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._server.hostname, self._server.port)
        answered = True

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asking: bool) -> None:
            nonlocal answered
            while data := await source.read(65536):
                self.count += asking and answered
                answered = not asking
                target.write(data)
            target.close()

        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, to_server, asking=True), pump(from_server, writer, asking=False))
