"""What hooks have to say about the jobs of dead workers, and what they are told of a sweep.

They are asked in the sweep's transaction, so that no other sweep gives the same jobs back meanwhile, and have five seconds in all:
jobs about which nobody has answered by then go their usual way. Nobody is asked, and no job is read, unless somebody wants to know.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import asyncpg
import msgspec

from backfill.client.rows import job_of
from backfill.db import Connection
from backfill.hooks import (
    FailureReason,
    FailWithBackoff,
    HookRegistry,
    JobInterrupted,
    JobPermanentlyFail,
    JobRecovery,
    Observation,
    Reschedule,
    Skip,
    WorkerRecovered,
)
from backfill.model import Job, RetryPolicy, graphile_delay
from backfill.sql import text

logger = logging.getLogger(__name__)

_PATIENCE: Final = 5.0  # seconds; a sweep's transaction has ten
_AGAIN: Final = ("started", "refunded")  # verdicts of jobs that run again
_Answer = Reschedule | FailWithBackoff | Skip


class Recovery:
    """The hooks of one worker's sweeps."""

    def __init__(
        self, hooks: HookRegistry, worker_id: str, policies: Mapping[str, RetryPolicy | None] | None = None
    ) -> None:
        """Prepare it.

        Args:
            hooks: Who is asked and told.
            worker_id: The worker that sweeps.
            policies: Those of the tasks that it knows, by their identifiers, for jobs that have none of their own.
        """
        self._hooks = hooks
        self._worker_id = worker_id
        self._policies = policies or {}
        self._jobs: dict[int, Job] = {}
        self._answers: dict[int, _Answer] = {}

    async def ask(self, connection: Connection, schema: str, dead: Sequence[str]) -> list[int]:
        """Ask about each job that dead workers hold.

        Args:
            connection: In the sweep's transaction.
            schema: The schema.
            dead: The workers that are dead.

        Returns:
            The jobs that are to be left as they are.
        """
        self._jobs, self._answers = {}, {}
        if not any(map(self._hooks.wants, (JobRecovery, JobInterrupted, JobPermanentlyFail))):
            return []
        rows = await connection.fetch(text("jobs_of_dead", schema), dead)
        self._jobs = {row["id"]: job_of(row) for row in rows}
        try:
            async with asyncio.timeout(_PATIENCE):
                for job in self._jobs.values():
                    await self._ask_about(job)
        except TimeoutError:
            logger.warning("hooks did not answer within %g s about all jobs of dead workers", _PATIENCE)
        return [job_id for job_id, answer in self._answers.items() if isinstance(answer, Skip)]

    async def _ask_about(self, job: Job) -> None:
        event = JobRecovery(
            job=job,
            worker_id=self._worker_id,
            previous_worker_id=str(job.locked_by).partition("/")[0],
            reason=FailureReason.WORKER_CRASHED,
        )
        answer = await self._hooks.ask_about_recovery(event)
        if answer is not None:
            self._answers[job.id] = answer

    async def heed(self, connection: Connection, schema: str, released: Iterable[asyncpg.Record]) -> None:
        """Have jobs that were released run when hooks have said, in the same transaction.

        Args:
            connection: In the sweep's transaction.
            schema: The schema.
            released: The rows of ``release_dead``.
        """
        changes = [
            (job_id, *self._change(self._jobs[job_id], answer))
            for job_id in (row["job_id"] for row in released if row["verdict"] in _AGAIN)
            if isinstance(answer := self._answers.get(job_id), Reschedule | FailWithBackoff)
        ]
        if changes:
            columns = [list(column) for column in zip(*changes, strict=True)]
            await connection.fetchval(text("recover_otherwise", schema), *columns)

    def events(self, dead: Iterable[str], found: Sequence[asyncpg.Record]) -> list[Observation]:
        """What there is to tell of a sweep that has been committed.

        Args:
            dead: The dead workers.
            found: The rows of ``release_dead``.
        """
        worker_id, events = self._worker_id, list[Observation]()
        handled = [row for row in found if row["verdict"] is not None]
        for row in handled:
            job = self._jobs.get(row["job_id"])
            if job is None:
                continue
            events.append(JobInterrupted(job=job, worker_id=worker_id, reason=FailureReason.WORKER_CRASHED))
            if row["verdict"] == "quarantined":
                events.append(self._quarantined(job, row))
        told = WorkerRecovered(worker_id=worker_id, dead_worker_ids=tuple(dead), jobs_recovered=len(handled))
        return [event for event in (*events, told) if self._hooks.wants(type(event))]

    def _quarantined(self, job: Job, row: asyncpg.Record) -> JobPermanentlyFail:
        message = f"WorkerCrashed: {row['crashes']} workers died while they ran it"
        detail = {"type": "WorkerCrashed", "message": message, "crashes": row["crashes"]}
        return JobPermanentlyFail(
            job=job,
            worker_id=self._worker_id,
            error=message,
            detail=msgspec.json.encode(detail).decode(),
            reason="quarantined",
            dlq_id=row["dlq_id"],
            duration=timedelta(0),
        )

    def _change(self, job: Job, answer: Reschedule | FailWithBackoff) -> tuple[Any, float, int]:
        """When the job is to run, or after how many seconds, and how many attempts then count."""
        if isinstance(answer, Reschedule):
            return answer.run_at, 0.0, max(0, job.attempts - 1) if answer.attempts is None else answer.attempts
        policy = job.extras.retry_policy or self._policies.get(job.task_identifier)
        delay = graphile_delay(job.attempts) if policy is None else policy.backoff(job.attempts - 1).total_seconds()
        return None, delay, job.attempts
