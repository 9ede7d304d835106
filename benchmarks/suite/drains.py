"""Drains by a worker in this process: jobs a second, and what they cost the worker and the server."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
from benchmarks.suite.bench import Bench, settle

from backfill import BackfillClient, QueueConfig, Task, WorkerConfig, WorkerRunner
from backfill.worker import WorkerRunnerBuilder

SLOTS = 24  # as graphile-worker's own benchmark has
LONGEST = 120.0  # seconds for a drain
LEFT = "select exists(select 1 from graphile_worker._private_jobs)"


class Runs:
    """Counts handler calls, from any thread; handlers call it.

    Attributes:
        first: When the first one was, by ``time.perf_counter``.
        cpu: The CPU time of this process by then.
    """

    def __init__(self) -> None:
        self.first = 0.0
        self.cpu = 0.0
        self._calls: list[None] = []

    def __call__(self) -> None:
        if not self._calls:
            self.first = time.perf_counter()
            self.cpu = time.process_time()
        self._calls.append(None)

    @property
    def count(self) -> int:
        """How many calls there have been."""
        return len(self._calls)


@contextlib.asynccontextmanager
async def working(
    dsn: str,
    task: Task[Any],
    *,
    slots: int = SLOTS,
    setup: Callable[[WorkerRunnerBuilder], Any] | None = None,
    **config: Any,
) -> AsyncIterator[WorkerRunner]:
    """A worker with defaults but the concurrency, for as long as the block takes."""
    config.setdefault("queue_configs", [QueueConfig.default_queue(slots)])
    builder = WorkerRunner.builder(WorkerConfig(database_url=dsn, **config)).define_job(task)
    if setup is not None:
        setup(builder)
    async with await builder.build() as runner:
        stop = asyncio.Event()
        running = runner.spawn_background(stop)
        try:
            yield runner
        finally:
            stop.set()
            await running


async def drain(bench: Bench, dsn: str, task: Task[Any], runs: Runs, jobs: int, **how: Any) -> dict[str, float]:
    """From the first handler call until the database says that nothing is left.

    Returns:
        Jobs a second, and microseconds of CPU a job of this process and of the server.
    """
    await settle(dsn)
    gc.collect()
    server = bench.server_cpu()
    watcher = await asyncpg.connect(dsn)
    try:
        async with working(dsn, task, **how), asyncio.timeout(LONGEST):
            while runs.count < jobs:
                await asyncio.sleep(0.02)
            while await watcher.fetchval(LEFT):
                await asyncio.sleep(0.005)
            ended, cpu = time.perf_counter(), time.process_time()
            server = bench.server_cpu() - server
    finally:
        await watcher.close()
    return {
        "rate": jobs / (ended - runs.first),
        "cpu_worker": (cpu - runs.cpu) / jobs * 1e6,
        "cpu_server": server / jobs * 1e6,
    }


async def add(dsn: str, jobs: Any) -> None:
    """Add what the iterable gives."""
    async with BackfillClient(dsn, install=False) as client:
        await client.enqueue_stream(jobs)
