"""A worker as others see it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec


class WorkerState(StrEnum):
    """What is known of a worker."""

    ALIVE = "alive"
    """It beats."""
    DRAINING = "draining"
    """It beats, and stops: it claims nothing more and waits for what runs."""
    LOST = "lost"
    """It has not beaten for longer than its lease; another worker takes its jobs over, or is about to."""


class RunningJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that a worker ran at its last beat.

    Attributes:
        id: The job.
        task_identifier: Its task; None when the job is gone, done or taken out since.
        running_for: How long it has been running.
    """

    id: int
    task_identifier: str | None
    running_for: timedelta


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of backfill.

    Attributes:
        id: Its id: what stands before the slash in ``locked_by`` of the jobs it holds.
        state: Whether it lives.
        host: The machine's name.
        pid: The process.
        version: Of backfill.
        lanes: ``name``, ``concurrency``, ``queue`` and ``priorities`` of each.
        tasks: The tasks that it runs.
        started_at: When it started.
        heartbeat_at: Its last beat.
        silent_for: How long ago that is, by the database's clock.
        lease: How long it may be silent.
        loop_lag: By how much its event loop was behind at the last beat: a handler that blocks shows here.
        running: What it ran then, the longest first.
    """

    id: str
    state: WorkerState
    host: str
    pid: int
    version: str
    lanes: Sequence[Mapping[str, Any]]
    tasks: Sequence[str]
    started_at: datetime
    heartbeat_at: datetime
    silent_for: timedelta
    lease: timedelta
    loop_lag: timedelta
    running: Sequence[RunningJob]
