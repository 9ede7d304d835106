"""What the database decides about cron: what is known of the items, and who adds the job of a minute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from backfill.cron.item import CronItem
from backfill.db import Connection
from backfill.errors import DatabaseError
from backfill.sql import text

_MOST_TRIES: Final = 20  # each lost a race that lasts less than a millisecond


@dataclass(frozen=True, slots=True)
class KnownCrontab:
    """What the database knows of an item.

    Attributes:
        identifier: The item's.
        known_since: When a worker first had it.
        last_execution: The latest minute for which it was scheduled; None when it never was.
    """

    identifier: str
    known_since: datetime
    last_execution: datetime | None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an item, to be scheduled.

    Attributes:
        item: The item.
        payload: The JSON text of the job's payload; None when no job is to be added and the minute only counts as done.
    """

    item: CronItem
    payload: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run.

    Attributes:
        item: The item.
        won: Whether this call was the first for the minute; else another worker was, or the item has gone on beyond it.
        job_id: The job that was added; None when none was.
        last_execution: The latest minute for which the item had been scheduled before.
    """

    item: CronItem
    won: bool
    job_id: int | None
    last_execution: datetime | None


async def known_crontabs(connection: Connection, schema: str) -> list[KnownCrontab]:
    """All that the database knows, in the order of the identifiers."""
    return [KnownCrontab(*row) for row in await connection.fetch(text("known_crontabs", schema))]


async def register(
    connection: Connection, schema: str, items: Sequence[CronItem], start: datetime
) -> Mapping[str, KnownCrontab]:
    """Make the items known as of that time; what was known of them before, by identifier."""
    known = {row.identifier: row for row in await known_crontabs(connection, schema)}
    unknown = [item.identifier for item in items if item.identifier not in known]
    if unknown:
        await connection.fetch(text("register_crontabs", schema), unknown, start)
    return known


async def schedule(connection: Connection, schema: str, tick: datetime, runs: Sequence[Run]) -> list[Outcome]:
    """Add the jobs of one minute, unless others have, in one transaction; what became of each run, in their order.

    Raises:
        DatabaseError: The job of a key was claimed anew at each try; nothing was added.
    """
    columns = (
        [run.item.identifier for run in runs],
        [run.payload is not None for run in runs],
        [run.item.task for run in runs],
        [run.payload for run in runs],
        [run.item.queue for run in runs],
        [run.item.max_attempts for run in runs],
        [run.item.job_key for run in runs],
        [run.item.priority for run in runs],
        [run.item.job_key_mode for run in runs],
    )
    async with connection.transaction():
        rows = await connection.fetch(text("schedule_crontabs", schema), tick, *columns)
        outcomes = []
        for run, row in zip(runs, rows, strict=True):
            job_id = row["job_id"]
            if row["won"] and job_id is None and run.payload is not None:
                job_id = await _add_again(connection, schema, tick, run)
            outcomes.append(Outcome(run.item, row["won"], job_id, row["last_execution"]))
        return outcomes


async def _add_again(connection: Connection, schema: str, tick: datetime, run: Run) -> int:
    """Add a job whose key's job was claimed at the first try."""
    item = run.item
    columns = (item.task, run.payload, item.queue, item.max_attempts, item.job_key, item.priority, item.job_key_mode)
    for _ in range(_MOST_TRIES):
        job_id: int | None = await connection.fetchval(text("add_cron_job", schema), tick, *columns)
        if job_id is not None:
            return job_id
    raise DatabaseError(
        f"the job with key {item.job_key!r}, of cron item {item.identifier}, was claimed anew at each of {_MOST_TRIES}"
        " tries to add its successor; nothing was added"
    )
