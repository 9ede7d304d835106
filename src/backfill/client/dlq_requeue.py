# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""Having an entry of the dead letter queue run again, and changing it, before that or on the way.

A requeue is one transaction: the edit, the new job and the entry's tie to it come about together or not at all. It is refused
while a job has the entry's key. What is in its way for a moment only, such as a queue's row that is deleted just then, is
met by trying again.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import msgspec

from backfill.client.dlq import checked_id, entry_of
from backfill.client.rows import job_of
from backfill.db import Connection, is_connection_error
from backfill.errors import DatabaseError, DlqEntryNotFound, InvalidJob, KeyInUse
from backfill.model import DlqEdit, DlqJob, Job, checked_notes
from backfill.schema import is_familiar
from backfill.sql import text

logger = logging.getLogger(__name__)

_TRIES: Final = 20


class _TryAgain(Exception):  # noqa: N818 - no error: it rolls a transaction back
    """What was in the way is gone, or will be."""


async def requeue_dlq_job(
    connection: Connection,
    schema: str,
    entry_id: int,
    notes: str | None = None,
    *,
    payload: Any = msgspec.UNSET,
    edit: DlqEdit | None = None,
    force: bool = False,
) -> Job:
    """Have an entry run again, now, as a new job with its task, queue, priority, key, limit of attempts and flags.

    Args:
        entry_id: The entry's number.
        notes: Replaces the entry's notes; None leaves them.
        payload: Replaces the payload, which is kept in the entry's history; left out, the payload is as it was.
        edit: Changes payload, task, queue, priority or limit of attempts first; what it replaces is kept in the history.
        force: Requeue although another job has the key: one that waits is dropped, one that runs loses its key and is
            not retried. Also requeue an entry that is out as a job that is not there any more, done or removed by
            somebody who knows nothing of the dead letter queue.

    Returns:
        The new job.

    Raises:
        DlqEntryNotFound: There is no such entry, or it is out.
        KeyInUse: A job with the entry's key is queued or running, and ``force`` is not set.
        InvalidJob: The payload has no faithful JSON form, or the notes cannot be stored.
    """
    checked_id(entry_id)
    checked_notes(notes)
    if payload is not msgspec.UNSET:
        if edit is not None:
            raise InvalidJob("give the payload in the edit, not both")
        edit = DlqEdit(payload=payload)
    for _ in range(_TRIES):
        if edit is None:
            await connection.execute(text("create_dlq_names", schema), [entry_id])
        try:
            async with connection.transaction():
                return await _requeue(connection, schema, entry_id, notes, edit, force=force)
        except _TryAgain:
            continue
    raise DatabaseError(f"DLQ entry {entry_id} could not be requeued: others come in between each time; try again")


async def edit_dlq_job(connection: Connection, schema: str, entry_id: int, edit: DlqEdit) -> DlqJob:
    """Change an entry without requeueing it; return it as it now is.

    What is replaced, notes aside, goes into the entry's history. Of an entry that is out only the notes can be changed.

    Args:
        entry_id: The entry's number.
        edit: What to change.

    Raises:
        DlqEntryNotFound: There is no such entry, or it is out and more than its notes would change.
    """
    checked_id(entry_id)
    async with connection.transaction():
        held = await connection.fetchrow(text("hold_dlq_job", schema), entry_id)
        if held is None or (held["requeued_job_id"] is not None and not edit.only_notes):
            raise DlqEntryNotFound(entry_id, None if held is None else held["requeued_job_id"])
        await _apply(connection, schema, [entry_id], edit)
        row = await connection.fetchrow(text("get_dlq_job", schema), entry_id)
    if row is None:  # it was held
        raise DlqEntryNotFound(entry_id)
    return entry_of(row)


async def _apply(connection: Connection, schema: str, ids: list[int], edit: DlqEdit, *, force: bool = False) -> None:
    """Change entries, in the caller's transaction; of those that are out only the notes, unless forced."""
    await connection.execute(text("edit_dlq_jobs", schema), ids, *edit.columns(), force)


@dataclass(frozen=True, slots=True)
class PageRequeuer:
    """Requeues pages of entries, each page a transaction of its own.

    Attributes:
        connection: The connection.
        schema: The schema's name.
        statement: What requeues entries there.
        notes: Replaces the entries' notes.
        edit: Changes the entries that are requeued.
        force: Whether to replace jobs that have an entry's key.
    """

    connection: Connection
    schema: str
    statement: str
    notes: str | None
    edit: DlqEdit | None
    force: bool

    async def requeue(self, ids: list[int]) -> set[int]:
        """Have those of the entries run again that can; return their ids.

        An entry of which no job can be made is logged and stays, and keeps no other from it.
        """
        try:
            done = await self._requeue_free(ids)
        except asyncpg.PostgresError as error:
            if is_connection_error(error):
                raise
            if len(ids) > 1:
                half = len(ids) // 2
                return await self.requeue(ids[:half]) | await self.requeue(ids[half:])
            logger.error("DLQ entry %d cannot be requeued: %s", ids[0], error)  # noqa: TRY400 - the error says it all
            return set()
        if self.force:
            left = [entry_id for entry_id in ids if entry_id not in done]
            done |= {entry_id for entry_id in left if await self._forced(entry_id)}
        return done

    async def _requeue_free(self, ids: list[int]) -> set[int]:
        """Requeue those that are here and whose key no job has."""
        done: set[int] = set()
        for _ in range(_TRIES):
            done.update(await (self._requeue_as_they_are(ids) if self.edit is None else self._edited(self.edit, ids)))
            ids = [entry_id for entry_id in ids if entry_id not in done]
            if ids:
                ids = await self.connection.fetchval(text("requeueable_dlq_jobs", self.schema), ids)
            if not ids:
                break
        return done

    async def _requeue_as_they_are(self, ids: list[int]) -> list[int]:
        await self.connection.execute(text("create_dlq_names", self.schema), ids)
        made = await self.connection.fetch(self.statement, ids, self.notes, False)  # noqa: FBT003 - a column
        return [row["dlq_id"] for row in made]

    async def _edited(self, edit: DlqEdit, ids: list[int]) -> list[int]:
        """Edit and requeue entries in one transaction, all that can be; none when something came in between."""
        try:
            async with self.connection.transaction():
                free: list[int] = await self.connection.fetchval(text("requeueable_dlq_jobs", self.schema), ids)
                await _apply(self.connection, self.schema, free, edit)
                made = await self._requeue_as_they_are(free)
                _all_or_none(made, free)
        except _TryAgain:
            return []
        return free

    async def _forced(self, entry_id: int) -> bool:
        """Requeue an entry whose key is in use; whether it was still there to be requeued."""
        try:
            await requeue_dlq_job(self.connection, self.schema, entry_id, self.notes, edit=self.edit, force=True)
        except (DlqEntryNotFound, KeyInUse):
            return False
        return True


def _all_or_none(made: list[int], wanted: list[int]) -> None:
    if len(made) < len(wanted):
        raise _TryAgain


async def requeueing(connection: Connection, schema: str) -> str:
    """The statement that requeues entries in this schema."""
    familiar = await is_familiar(connection, schema)
    return text("requeue_dlq_jobs" if familiar else "requeue_dlq_jobs_by_add_job", schema)


async def _requeue(
    connection: Connection, schema: str, entry_id: int, notes: str | None, edit: DlqEdit | None, *, force: bool
) -> Job:
    """Requeue one entry in the caller's transaction.

    Raises:
        _TryAgain: It may work next time.
    """
    if force:
        await _make_room(connection, schema, entry_id)
    if edit is not None:
        await _apply(connection, schema, [entry_id], edit, force=force)
        await connection.execute(text("create_dlq_names", schema), [entry_id])
    row = await connection.fetchrow(await requeueing(connection, schema), [entry_id], notes, force)
    if row is not None:
        made = await connection.fetchrow(text("get_job", schema), row["job_id"])
        if made is not None:
            return job_of(made)
    await _refuse(connection, schema, entry_id, force=force)
    raise _TryAgain


async def _make_room(connection: Connection, schema: str, entry_id: int) -> None:
    """Take the entry's key from whatever job has it, its own aside."""
    row = await connection.fetchrow(text("hold_dlq_job", schema), entry_id)
    if row is not None and row["job_key"] and not row["job_is_there"]:
        await connection.execute(text("remove_job", schema), row["job_key"])


async def _refuse(connection: Connection, schema: str, entry_id: int, *, force: bool) -> None:
    """Say why an entry was not requeued; return when nothing is in the way any more."""
    row = await connection.fetchrow(text("hold_dlq_job", schema), entry_id)
    if row is None:
        raise DlqEntryNotFound(entry_id)
    if row["requeued_job_id"] is not None and (row["job_is_there"] or not force):
        raise DlqEntryNotFound(entry_id, row["requeued_job_id"])
    if row["job_key"] and not force:
        holder = await connection.fetchval(text("job_of_key", schema), row["job_key"])
        if holder is not None:
            raise KeyInUse(row["job_key"], holder, entry_id)
