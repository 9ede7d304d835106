"""The demo's course: add jobs, watch them being run, and sum up what happened."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from backfill.cli.demo.sources import Source
from backfill.cli.demo.tables import sql
from backfill.cli.demo.tasks import count_source, ping, state, take_note, unreliable, worker
from backfill.client import BackfillClient
from backfill.db import Connection
from backfill.model import DlqFilter, DlqJob, JobSpec, Priority
from backfill.worker import QueueConfig, WorkerConfig, WorkerRunnerBuilder
from backfill.worker.config import HIGHEST_PRIORITY, LOWEST_PRIORITY

_FAILURES: Final = (1, 1, 1, 2, 2)  # how often each of the unreliable jobs fails
_EDITIONS: Final = 3
_KEY: Final = "demo:announcement"
_LATER: Final = timedelta(seconds=2)
_LOOK: Final = 0.1  # seconds between looks at how far it is
_PING: Final = 0.05  # seconds between the urgent jobs that are added while bulk jobs run


@dataclass(frozen=True, slots=True)
class Result:
    """What happened.

    Attributes:
        seconds: From the first job added to the last one done.
        waits: Seconds that each run waited, sorted, by the run's kind.
        retries: Runs that were not their job's first.
        counted: What was counted in the files.
        notes: What the single jobs noted, by what they are about.
        dead: What is in the dead letter queue.
    """

    seconds: float
    waits: dict[str, list[float]]
    retries: int
    counted: dict[str, int]
    notes: dict[str, list[dict[str, Any]]]
    dead: list[DlqJob]

    @property
    def runs(self) -> int:
        """How many runs there were."""
        return sum(map(len, self.waits.values()))


def make_builder(url: str, schema: str) -> WorkerRunnerBuilder:
    """The demo's worker: the two lanes that a worker has by default."""
    lanes = [
        QueueConfig.priority_queue("fast", 10, LOWEST_PRIORITY, -1),
        QueueConfig.priority_queue("bulk", 5, 0, HIGHEST_PRIORITY),
    ]
    patience = timedelta(seconds=10)
    return worker(WorkerConfig(database_url=url, schema=schema, queue_configs=lanes, shutdown_timeout=patience))


async def add_jobs(client: BackfillClient, sources: Sequence[Source]) -> None:
    """Add all jobs; those of the files first, so that the others have something to overtake."""
    before = datetime.now(UTC)
    now: datetime = await client.pool.fetchval("select clock_timestamp()")
    state.ahead = now - before - (datetime.now(UTC) - before) / 2
    state.runs.clear()
    await client.enqueue_many([(count_source, source) for source in sources])
    await client.enqueue(take_note, {"about": "emergency", "detail": 0}, JobSpec(priority=Priority.EMERGENCY))
    await client.enqueue_many([(unreliable, {"failures": failures}) for failures in _FAILURES])
    for edition in range(1, _EDITIONS + 1):
        spec = JobSpec(job_key=_KEY, run_at=now + _LATER / 2, priority=Priority.FAST_HIGH)
        await client.enqueue(take_note, {"about": "keyed", "detail": edition}, spec)
    spec = JobSpec(run_at=now + _LATER, priority=Priority.FAST_HIGH)
    await client.enqueue(take_note, {"about": "scheduled", "detail": 0}, spec)


async def all_done(connection: Connection, client: BackfillClient, files: int, advance: Callable[[int], None]) -> None:
    """Wait until no job is left; as long as there are files to do, add an urgent job now and then.

    Args:
        connection: Where to look.
        client: What adds the urgent jobs.
        files: How many files there are.
        advance: Told how many files are done with, now and then.
    """
    while True:
        row = await connection.fetchrow(sql("progress", client.schema))
        finished, jobs = (files, 0) if row is None else (row["finished"], row["jobs"])
        advance(finished)
        if not jobs:
            return
        until = time.monotonic() + _LOOK
        while time.monotonic() < until:
            if finished < files:
                await client.enqueue(ping, {}, JobSpec(priority=Priority.FAST_HIGH))
            await asyncio.sleep(_PING)


async def sum_up(client: BackfillClient, began: float) -> Result:
    """What happened since ``began``, a moment of the monotonic clock."""
    seconds = time.monotonic() - began
    waits: dict[str, list[float]] = {"urgent": [], "serial": [], "bulk": []}
    for run in state.runs:
        waits[run.kind].append(run.waited)
    notes: dict[str, list[dict[str, Any]]] = {}
    for row in await client.pool.fetch(sql("notes", client.schema)):
        notes.setdefault(row["about"], []).append(dict(row))
    total = await client.pool.fetchrow(sql("counted", client.schema))
    return Result(
        seconds=seconds,
        waits={kind: sorted(values) for kind, values in waits.items()},
        retries=sum(run.attempt > 1 for run in state.runs),
        counted=dict(total or {}),
        notes=notes,
        dead=(await client.list_dlq_jobs(DlqFilter(limit=1000))).jobs,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the sorted values that so many per cent of them do not exceed; 0 when there is none."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else 0.0
