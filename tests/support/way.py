"""A way to a server that can be blocked, as by a network that drops packets, and cut."""

import asyncio
import contextlib
from pathlib import Path
from typing import Final

PORT: Final = 5432  # only a part of a socket's file name


class Way:
    """A unix socket that leads to another, until it is blocked."""

    def __init__(self, folder: Path, target: str) -> None:
        self._path, self._target = folder / f".s.PGSQL.{PORT}", target
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._accept, str(self._path))

    async def end(self) -> None:
        """End it with all connections."""
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def block(self) -> None:
        """Let nothing through any more, in either direction, and say nothing."""
        self._open.clear()

    def unblock(self) -> None:
        """Let through what was held, and all else."""
        self._open.set()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._open.wait()
                there, to_there = await asyncio.open_unix_connection(self._target)
                self._writers.add(to_there)
                await asyncio.gather(self._pass(there, writer), self._pass(reader, to_there))
                self._writers.discard(to_there)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
