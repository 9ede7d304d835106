"""Looking at workers."""

from datetime import timedelta

import asyncpg
import msgspec

from backfill.db import Connection
from backfill.model import RunningJob, WorkerInfo, WorkerState
from backfill.sql import text


async def workers(connection: Connection, schema: str) -> list[WorkerInfo]:
    """Return all workers of backfill that are registered: alive, draining or lost, the oldest first.

    Workers of Node and Rust are not among them; a worker that has ended in order is not either.
    """
    return [_worker_of(row) for row in await connection.fetch(text("list_workers", schema))]


def _worker_of(row: asyncpg.Record) -> WorkerInfo:
    running = [
        RunningJob(id=job_id, task_identifier=task, running_for=timedelta(seconds=seconds))
        for job_id, task, seconds in zip(row["running"], row["running_tasks"], row["running_seconds"], strict=True)
    ]
    return WorkerInfo(
        id=row["id"],
        state=WorkerState(row["state"]),
        host=row["host"],
        pid=row["pid"],
        version=row["version"],
        lanes=msgspec.json.decode(row["lanes"]),
        tasks=row["tasks"],
        started_at=row["started_at"],
        heartbeat_at=row["heartbeat_at"],
        silent_for=timedelta(seconds=row["silent_seconds"]),
        lease=row["lease"],
        loop_lag=timedelta(seconds=row["loop_lag"]),
        running=running,
    )
