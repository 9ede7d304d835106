"""backfill itself as a peer of the side-by-side benchmark: its public API, default settings but the concurrency."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from backfill import BackfillClient, QueueConfig, WorkerConfig, WorkerRunner, task


class Peer:
    dist = "backfill"
    pending = "select exists(select 1 from graphile_worker._private_jobs)"
    modes: ClassVar[dict[str, dict[str, Any]]] = {"default": {"concurrency": 24}}
    jobs: ClassVar[dict[str, int]] = {"default": 60000}

    def __init__(self, dsn: str, concurrency: int) -> None:
        self.dsn, self.concurrency = dsn, concurrency

    async def install(self) -> None:
        async with BackfillClient(self.dsn):
            pass

    async def open(self) -> None:
        self.client = BackfillClient(self.dsn, install=False)
        await self.client.open()

    async def add(self, i: int) -> None:
        await self.client.enqueue("noop", {"id": i})

    async def add_many(self, ids: Iterable[int]) -> None:
        await self.client.enqueue_stream(("noop", {"id": i}) for i in ids)

    async def start(self, on_job: Callable[[int], None]) -> None:
        @task("noop")
        async def noop(payload: dict[str, int]) -> None:
            on_job(payload["id"])

        config = WorkerConfig(database_url=self.dsn, queue_configs=[QueueConfig.default_queue(self.concurrency)])
        self.stopping = asyncio.Event()
        self.runner = await WorkerRunner.builder(config).define_job(noop).build()
        self.running = self.runner.spawn_background(self.stopping)

    async def stop(self) -> None:
        self.stopping.set()
        await self.running
        await self.runner.close()

    async def close(self) -> None:
        await self.client.close()
