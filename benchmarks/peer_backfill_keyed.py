"""backfill as a peer that gives each job a key."""

from collections.abc import Iterable
from typing import Any, ClassVar

from backfill import BackfillClient, JobSpec


class Peer:
    dist = "backfill"
    pending = "select exists(select 1 from graphile_worker._private_jobs)"
    modes: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def open(self) -> None:
        self.client = BackfillClient(self.dsn, install=False)
        await self.client.open()

    async def add(self, i: int) -> None:
        await self.client.enqueue("noop", {"id": i}, JobSpec(job_key=f"key-{i}"))

    async def add_many(self, ids: Iterable[int]) -> None:
        await self.client.enqueue_stream(("noop", {"id": i}, JobSpec(job_key=f"key-{i}")) for i in ids)

    async def close(self) -> None:
        await self.client.close()
