"""Jobs without end: cut into batches, and one batch written while the next is made ready."""

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final

from backfill.client.batch import Batch, JobTuple

_FIRST: Final = 1000  # jobs of a stream's first batch: the time to make it ready is time in which nothing is written


class Stream:
    """Writes batches one after the other, each while its caller gets the next one ready.

    Attributes:
        count: Jobs of the batches that have been written.
    """

    def __init__(self, write: Callable[[Batch], Coroutine[Any, Any, int]]) -> None:
        self.count = 0
        self._write = write
        self._writing: asyncio.Task[int] | None = None

    async def write(self, batch: Batch) -> None:
        """Begin to write a batch when the one before has been written."""
        await self._written()
        self._writing = asyncio.create_task(self._write(batch), name="backfill-stream")
        await asyncio.sleep(0)  # let it send before whoever makes the next batch takes the loop

    async def finish(self, error: Exception | None = None) -> None:
        """Wait for the batch that is being written; and say on the error, or on what that ends with, how far it came."""
        try:
            await self._written()
        except Exception as own:
            error = own
            raise
        finally:
            if error is not None:
                error.add_note(f"{self.count} jobs of earlier batches have been added")

    async def cancel(self) -> None:
        """Cancel the batch that is being written, and wait until it has ended."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    async def _written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.count += await writing


async def batches(jobs: Iterable[JobTuple] | AsyncIterable[JobTuple], size: int) -> AsyncIterator[list[JobTuple]]:
    """The jobs in lists of that size; the last may be shorter, and so are the first ones, so that writing begins soon."""
    sizes = _sizes(size)
    if isinstance(jobs, AsyncIterable):
        batch: list[JobTuple] = []
        full = next(sizes)
        async for job in jobs:
            batch.append(job)
            if len(batch) == full:
                yield batch
                batch, full = [], next(sizes)
        if batch:
            yield batch
        return
    rest = iter(jobs)
    while batch := list(itertools.islice(rest, next(sizes))):
        yield batch


def _sizes(size: int) -> Iterator[int]:
    first = min(_FIRST, size)
    while True:
        yield first
        first = min(2 * first, size)
