"""The demo's tasks, and a builder for them: ``backfill worker backfill.cli.demo.tasks:worker --schema backfill_demo``."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict

from backfill.cli.demo.counting import Helpers
from backfill.cli.demo.sources import Source
from backfill.cli.demo.tables import SCHEMA, sql
from backfill.errors import TemporaryUnavailable
from backfill.model import JobSpec, Priority, Queue, RetryPolicy, task
from backfill.worker import WorkerConfig, WorkerContext, WorkerRunner, WorkerRunnerBuilder


@dataclass(slots=True)
class Run:
    """One run of a job.

    Attributes:
        kind: ``bulk``, ``serial`` or ``urgent``.
        waited: Seconds from when it was due to the start.
        attempt: Which run of the job it was, from 1.
    """

    kind: str
    waited: float
    attempt: int


@dataclass(slots=True)
class State:
    """What the tasks of this process share.

    Attributes:
        schema: Where the demo's tables are.
        ahead: How far the database's clock is ahead of ours.
        runs: The runs so far.
        helpers: What parses.
    """

    schema: str = SCHEMA
    ahead: timedelta = timedelta()
    runs: list[Run] = field(default_factory=list)
    helpers: Helpers = field(default_factory=Helpers)

    def began(self, ctx: WorkerContext) -> None:
        """Note that a run began."""
        job = ctx.job
        waited = datetime.now(UTC) + self.ahead - max(job.run_at, job.created_at)
        kind = "serial" if job.queue.is_serial else "urgent" if job.priority < 0 else "bulk"
        self.runs.append(Run(kind, max(0.0, waited.total_seconds()), ctx.attempt))


state: Final = State()


def worker(config: WorkerConfig) -> WorkerRunnerBuilder:
    """Build a runner for the demo's tasks."""
    state.schema = config.schema
    builder = WorkerRunner.builder(config)
    for one in (count_source, add_to_total, ping, unreliable, take_note):
        builder.define_job(one)
    return builder


@task("count_source", retry_policy=RetryPolicy.fast())
async def count_source(source: Source, ctx: WorkerContext) -> None:
    """Parse a file and store what is in it; in the same transaction, add a job that adds it to its package's total."""
    state.began(ctx)
    lines, functions, classes = await asyncio.to_thread(state.helpers.count, source.path)
    async with ctx.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            sql("store_file", state.schema), source.path, source.package, lines, functions, classes
        )
        await ctx.enqueue(
            add_to_total,
            Counted(package=source.package, lines=lines),
            JobSpec(queue=Queue.serial_for("package", source.package), priority=Priority.FAST_DEFAULT),
            connection=connection,
        )


class Counted(TypedDict):
    """A file that was counted: the payload of an ``add_to_total`` job."""

    package: str
    lines: int


@task("add_to_total")
async def add_to_total(counted: Counted, ctx: WorkerContext) -> None:
    """Add to a running total by reading, thinking, and writing: wrong if two did it at once. The serial queue sees to it."""
    state.began(ctx)
    package = counted["package"]
    before = await ctx.pool.fetchrow(sql("read_total", state.schema), package)
    files, lines = (0, 0) if before is None else (before["files"], before["lines"])
    await asyncio.sleep(0)
    await ctx.pool.execute(sql("write_total", state.schema), package, files + 1, lines + counted["lines"])


@task("ping")
async def ping(ctx: WorkerContext) -> None:
    """Do nothing, at once: the wait is what counts."""
    state.began(ctx)


class Trouble(TypedDict):
    """How often an ``unreliable`` job fails before it succeeds."""

    failures: int


@task("unreliable", retry_policy=RetryPolicy.fast())
async def unreliable(trouble: Trouble, ctx: WorkerContext) -> None:
    """Fail so often, then succeed."""
    state.began(ctx)
    if ctx.attempt <= trouble["failures"]:
        raise TemporaryUnavailable(f"not yet: try {ctx.attempt} of {trouble['failures'] + 1}")


class Note(TypedDict):
    """What a ``take_note`` job notes."""

    about: str
    detail: int


@task("take_note")
async def take_note(note: Note, ctx: WorkerContext) -> None:
    """Note that it ran."""
    state.began(ctx)
    due = max(ctx.job.run_at, ctx.job.created_at)
    await ctx.pool.execute(sql("take_note", state.schema), note["about"], note["detail"], due)
