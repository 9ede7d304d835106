"""What a handler is given besides its payload."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from backfill.errors import ClaimLost
from backfill.model import EnqueueOutcome, Job, JobSpec
from backfill.sql import text

if TYPE_CHECKING:
    from backfill.client import BackfillClient
    from backfill.client.rows import TaskName
    from backfill.db import Connection, Pool
    from backfill.worker.claimed import Claimed


class WorkerContext:
    """The job that runs, and ways to reach the database and the queue. Read-only.

    A handler gets it through the one parameter that is annotated ``WorkerContext``.

    What reaches the database through it is refused with ``ClaimLost`` once the worker's lease is over: another worker may
    be running the job by then.
    """

    __slots__ = ("_claimed", "_client", "_job", "_worker_id")

    def __init__(self, claimed: "Claimed", client: "BackfillClient", worker_id: str) -> None:
        self._claimed = claimed
        self._client = client
        self._worker_id = worker_id
        self._job: Job | None = None

    @property
    def job(self) -> Job:
        """The job as it was claimed: ``attempts`` counts this run."""
        if self._job is None:
            self._job = self._claimed.job()
        return self._job

    @property
    def pool(self) -> "Pool":
        """Connections for handlers; the worker's own are others, so using these up does not stop it.

        Ask for it each time, rather than keep it: that is when it looks whether the job is still this worker's.

        Raises:
            ClaimLost: The worker's lease is over.
        """
        self._claimed.fence.check(self._claimed.id, "use the pool")
        return self._client.pool

    @asynccontextmanager
    async def transaction(self) -> "AsyncIterator[Connection]":
        """A connection of the pool with a transaction, which commits only if the job is still this worker's.

        Whether it is, is asked in the transaction itself, last of all: so of two runs of one job, such as after a freeze of
        the machine, at most one commits.

        Yields:
            The connection. The transaction commits at the end of the block, and is rolled back by any error.

        Raises:
            ClaimLost: The worker's lease is over, or the claim was taken away; nothing was committed.
        """
        claimed, client = self._claimed, self._client
        async with self.pool.acquire() as connection, connection.transaction():
            yield connection
            claimed.fence.check(claimed.id, "commit a transaction")
            if not await connection.fetchval(text("hold_claim", client.schema), claimed.id, claimed.token):
                raise ClaimLost(
                    f"the claim of job {claimed.id} was taken away while it ran: its transaction is rolled back"
                )

    @property
    def worker_id(self) -> str:
        """The id of the worker that runs the job."""
        return self._worker_id

    @property
    def cancel_requested(self) -> bool:
        """Whether the handler should end: its job was cancelled, its time is up, its claim was lost, or the worker stops.

        For plain functions, which run in threads and can't be cancelled; an ``async def`` handler is.
        """
        return self._claimed.cancel_requested

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return self._claimed.attempt

    async def enqueue(
        self,
        task: "TaskName",
        payload: Any = msgspec.UNSET,
        spec: JobSpec | None = None,
        *,
        connection: "Connection | None" = None,
    ) -> EnqueueOutcome:
        """Add a job, as ``BackfillClient.enqueue`` does.

        Args:
            task: The task, or its identifier.
            payload: Any JSON value; left out it is ``{}``.
            spec: When and how it runs.
            connection: A connection in whose transaction the job is added; else it is added at once.

        Raises:
            ClaimLost: The worker's lease is over.
        """
        self._claimed.fence.check(self._claimed.id, "add jobs")
        return await self._client.enqueue(task, payload, spec, connection=connection)
