"""Events as an async iterator, for applications that watch a worker without a plugin."""

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import Final, Self

from backfill.hooks.events import Observation

logger = logging.getLogger(__name__)

DEFAULT_BUFFER: Final = 1000


class EventStream:
    """The events of some kinds, in the order in which they happened: ``async for event in stream``.

    It never holds anybody up. Events wait in a buffer; those that come while it is full are lost, and counted. The iteration
    ends when the worker has stopped and the buffer is empty, after ``close``, and at the end of ``async with``.

    Attributes:
        wanted: The kinds of events.
        dropped: How many events were lost so far.
    """

    def __init__(self, wanted: frozenset[type[Observation]], buffer: int) -> None:
        """Begin to collect.

        Args:
            wanted: The kinds of events.
            buffer: How many may wait.
        """
        self.wanted = wanted
        self.dropped = 0
        self._size = buffer
        self._waiting: deque[Observation] = deque()
        self._news = asyncio.Event()
        self._full = False
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether no more events come."""
        return self._ended

    def put(self, event: Observation) -> None:
        """Add an event; it is lost if the buffer is full."""
        if self._ended:
            return
        if len(self._waiting) >= self._size:
            self.dropped += 1
            if not self._full:
                self._full = True
                logger.warning(
                    "an event stream's reader is slower than the worker: %d events wait, and more are dropped",
                    self._size,
                )
            return
        self._full = False
        self._waiting.append(event)
        self._news.set()

    def end(self) -> None:
        """Let the iteration end once what waits has been read."""
        if not self._ended and self.dropped:
            logger.warning("an event stream has lost %d events in all, since its reader was slower", self.dropped)
        self._ended = True
        self._news.set()

    def close(self) -> None:
        """End the iteration at once."""
        self._waiting.clear()
        self.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Observation:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
