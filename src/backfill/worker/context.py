"""What a handler is given besides its payload."""

from typing import TYPE_CHECKING, Any

import msgspec

from backfill.model import EnqueueOutcome, Job, JobSpec

if TYPE_CHECKING:
    from backfill.client import BackfillClient
    from backfill.client.rows import TaskName
    from backfill.db import Connection, Pool
    from backfill.worker.claimed import Claimed


class WorkerContext:
    """The job that runs, and ways to reach the database and the queue. Read-only.

    A handler gets it through the one parameter that is annotated ``WorkerContext``.
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
        """Connections for handlers; the worker's own are others, so using these up does not stop it."""
        return self._client.pool

    @property
    def worker_id(self) -> str:
        """The id of the worker that runs the job."""
        return self._worker_id

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
        """
        return await self._client.enqueue(task, payload, spec, connection=connection)
