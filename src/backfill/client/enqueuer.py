"""Adding jobs through a pool: what a client and a worker's context share.

A job is announced and its names are created as the modules ``notify`` and ``enqueue`` say. A batch is one transaction. It
creates the names that it has not seen before in front of that transaction, and goes through its keys in their order; should
two still wait for each other, PostgreSQL ends one of them, which is then sent again from its beginning.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Iterable
from typing import Any, Final

import asyncpg
import msgspec

from backfill.client.batch import Batch, Chunk, JobTuple, Keyed, keyed_args, parts, pieces, prepare, refused
from backfill.client.enqueue import MOST_TRIES, add_by_function, build_insert, inserted, lost_races, names_missing
from backfill.client.notify import TRANSACTION_NOTIFICATION, Notifier, notification
from backfill.client.rows import Kind, TaskName, kind_of, payload_text, settings_of
from backfill.client.stream import Stream, batches
from backfill.db import Borrowed, Connection, Keeper, Pool, is_connection_error
from backfill.errors import InvalidJob, JobScheduleFailed, JobScheduleSkipped
from backfill.hooks import HookRegistry
from backfill.model import EnqueueOutcome, JobKeyMode, JobSpec, TaskHandler, checked_int, decode_payload
from backfill.sql import text

_MOST_KNOWN: Final = 10_000
_ASIDE_SECONDS: Final = 0.5
_BATCH_TRIES: Final = 5
_NOT_ADDED: Final = "the job was not added"
_MAYBE_ADDED: Final = "the job may have been added or not; with a job_key, enqueueing it again is safe"
_NONE_ADDED: Final = "no job was added"
_ALL_OR_NONE: Final = "either all jobs were added or none; with job_keys, enqueueing them again is safe"


class Enqueuer:
    """Adds jobs.

    Attributes:
        familiar: Whether the schema's tables are known; whoever learns that this has changed sets it.

    Args:
        pool: Where the connections come from; it stays open when this is closed.
        schema: The schema's name, unquoted.
        hooks: Its ``before_job_schedule`` handlers are asked about each job; None = nobody is.
        familiar: Whether the schema's tables are known. If not (a later revision, columns that somebody added), jobs are
            added by ``add_job`` alone, one by one: whoever changed the tables has seen to it that it works.
    """

    def __init__(self, pool: Pool, schema: str, hooks: HookRegistry | None = None, *, familiar: bool = True) -> None:
        self._pool = pool
        self._schema = schema
        self._hooks = HookRegistry() if hooks is None else hooks
        self._keeper = Keeper(pool)
        self._notifier = Notifier(pool, schema, keeper=self._keeper)
        self.familiar = familiar
        self._known: set[tuple[str, str | None]] = set()

    async def close(self) -> None:
        """Announce what has not been announced yet, and give back every connection."""
        await self._notifier.close()
        await self._keeper.close()

    async def enqueue(
        self,
        task: TaskName,
        payload: Any = msgspec.UNSET,
        spec: JobSpec | None = None,
        *,
        connection: Connection | None = None,
    ) -> EnqueueOutcome:
        """Add a job.

        Args:
            task: The task's identifier; or the task (``@task``, a TaskHandler class), whose settings the job then takes.
            payload: Any JSON value; left out it is ``{}``, None is JSON's null.
            spec: When and how it runs; None = at once, with the defaults.
            connection: An asyncpg connection in whose transaction the job is added: it is there if that commits. Errors
                of the driver then come as they are.

        Returns:
            Enqueued with the job; AlreadyInProgress if the spec says ``unsafe_dedupe`` and the key's job is running.

        Raises:
            InvalidJob: Something in it cannot be; nothing was sent.
            JobScheduleSkipped, JobScheduleFailed: A hook kept it out; nothing was sent.
            DatabaseError: The database refused it or could not be reached, and it was not added; or, where the error's
                ``in_doubt`` is set, the answer was lost, and it may have been added.
        """
        if self._hooks.around_adding:
            task, payload, spec = await self._asked(task, payload, spec)
        kind = kind_of(task, spec)
        encoded = payload_text(payload, kind)
        simple = self.familiar and (kind.key is None or kind.mode is not JobKeyMode.UNSAFE_DEDUPE)
        if connection is not None:
            if kind.key is not None or not self.familiar:
                await self._create_unknown([kind], connection)
            row = (
                await self._insert(connection, kind, encoded, TRANSACTION_NOTIFICATION, waits=True) if simple else None
            )
            if row is not None:
                return inserted(kind, encoded, row)
            return await add_by_function(connection, self._schema, kind, encoded)
        what = f"cannot enqueue {kind.task}"
        async with Borrowed(self._pool, what, not_done=_NOT_ADDED, maybe=_MAYBE_ADDED, keeper=self._keeper) as own:
            if simple:
                return await self._insert_and_count(own, kind, encoded)
            return await add_by_function(own, self._schema, kind, encoded)

    async def enqueue_task(
        self, task: TaskHandler, spec: JobSpec | None = None, *, connection: Connection | None = None
    ) -> EnqueueOutcome:
        """Add a job whose payload is the object itself, an instance of a TaskHandler class; else like ``enqueue``."""
        return await self.enqueue(type(task), task, spec, connection=connection)

    async def enqueue_many(
        self, jobs: Iterable[JobTuple], *, connection: Connection | None = None
    ) -> list[EnqueueOutcome]:
        """Add many jobs in one transaction, all or none.

        Args:
            jobs: ``(task, payload, spec)`` of each, as for ``enqueue``; payload and spec may be left out.
            connection: As for ``enqueue``.

        Returns:
            An outcome for each job, in their order.

        Raises:
            InvalidJob: A job cannot be, or two have the same key; nothing was sent.
            JobScheduleSkipped, JobScheduleFailed: A hook kept one of them out, and so all; nothing was sent.
            DatabaseError: The database refused them or could not be reached, and none was added; or, where the error's
                ``in_doubt`` is set, the answer was lost, and either all were added or none.
        """
        if self._hooks.around_adding:
            jobs = await self._all_asked(jobs)
        batch = prepare(jobs)
        if connection is not None:
            await self._create_unknown(batch.kinds(), connection)
            async with connection.transaction():
                return await self._write(connection, batch, TRANSACTION_NOTIFICATION)
        return await self._write_whole(batch) if batch.size else []

    async def enqueue_stream(
        self, jobs: Iterable[JobTuple] | AsyncIterable[JobTuple], *, batch_size: int = 5000
    ) -> int:
        """Add jobs as they come, each batch in a transaction of its own, with no more than two batches in memory.

        While one batch is being written, the next is taken from ``jobs`` and checked.

        Args:
            jobs: As for ``enqueue_many``; also an async iterable.
            batch_size: Jobs in a batch, 1 to 1,000,000; the first batches are smaller.

        Returns:
            How many were added.

        Raises:
            InvalidJob: A job cannot be; the batches before its own have been added, a note on the error says how many.
            DatabaseError: The same for a batch that the database did not take.
        """
        checked_int("batch_size", batch_size, 1, 1_000_000)
        stream = Stream(self._write_uncounted)
        try:
            async for taken in batches(jobs, batch_size):
                asked = await self._all_asked(taken) if self._hooks.around_adding else taken
                await stream.write(await asyncio.to_thread(prepare, asked))
        except Exception as error:
            await stream.finish(error)
            raise
        except BaseException:
            await stream.cancel()
            raise
        await stream.finish()
        return stream.count

    async def _write_uncounted(self, batch: Batch) -> int:
        """Add a batch in a transaction of its own; how many jobs, without saying which."""
        outcomes = await self._write_whole(batch, tell=False)
        return batch.size - sum(not outcome.is_enqueued for outcome in outcomes)

    async def _write_whole(self, batch: Batch, *, tell: bool = True) -> list[EnqueueOutcome]:
        what = f"cannot enqueue a batch of {batch.size} jobs"
        keeper = self._keeper  # nothing of a batch stays in the session
        async with Borrowed(self._pool, what, not_done=_NONE_ADDED, maybe=_ALL_OR_NONE, keeper=keeper) as own:
            return await self._write_alone(own, batch, tell=tell)

    async def _asked(self, task: TaskName, payload: Any, spec: JobSpec | None) -> tuple[TaskName, Any, JobSpec | None]:
        """The job as the hooks let it in.

        They see what will be stored: the payload as a JSON value, and the settings with those of the task.
        """
        identifier, whole = settings_of(task, spec)
        value = decode_payload(payload_text(payload))
        return task, await self._hooks.ask_before_adding(identifier, value, whole), spec

    async def _all_asked(self, jobs: Iterable[JobTuple]) -> list[JobTuple]:
        """The jobs of a batch as the hooks let them in, if they let in all of them."""
        asked: list[JobTuple] = []
        for position, job in enumerate(jobs):
            try:
                asked.append(await self._asked(*parts(job)))
            except InvalidJob as error:
                raise refused(position, error) from error
            except (JobScheduleSkipped, JobScheduleFailed) as error:
                error.add_note(f"it was job {position + 1} of a batch; no job was added")
                raise
        return asked

    async def _insert_and_count(self, own: Connection, kind: Kind, payload: str) -> EnqueueOutcome:
        """Add a job by one INSERT if that does, and have it announced."""
        carried, row = self._notifier.leading(), None
        try:
            row = await self._insert(own, kind, payload, None if carried is None else carried.text)
        except BaseException as error:
            if is_connection_error(error) or not isinstance(error, asyncpg.PostgresError):
                self._notifier.count()  # no answer, or nobody waits for it: it may be there all the same
            raise
        finally:
            if carried is None:
                if row is not None and row["due"]:
                    self._notifier.count()
            elif row is not None and row["due"] and not row["notified"]:
                self._notifier.postpone(carried)
            else:
                self._notifier.ended(carried, is_sent=row is not None and row["notified"])
        if row is None:
            return await add_by_function(own, self._schema, kind, payload)
        return inserted(kind, payload, row)

    async def _insert(
        self, connection: Connection, kind: Kind, payload: str, notify: str | None, *, waits: bool = False
    ) -> asyncpg.Record | None:
        """Add a job by one INSERT; its row. None: it has a key, and takes ``add_job``."""
        sql, args = build_insert(self._schema, kind, payload, notify, waits=waits)
        for attempt in range(MOST_TRIES):
            row = await connection.fetchrow(sql, *args)
            if row is not None or kind.key is not None:
                return row
            await self._create([kind], connection, aside=attempt == 0)
        raise names_missing([kind])

    async def _write_alone(self, connection: Connection, batch: Batch, *, tell: bool = True) -> list[EnqueueOutcome]:
        """Add a batch in a transaction of its own, again when PostgreSQL ended it because of others."""
        await self._create_unknown(batch.kinds(), connection)
        notify = notification(sum(len(chunk.jobs) for chunk in batch.chunks))
        if len(batch.chunks) == 1 and not batch.keyed and self.familiar:
            return await self._write(connection, batch, notify, tell=tell)  # one statement is a transaction
        for _ in range(_BATCH_TRIES - 1):
            with contextlib.suppress(asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                async with connection.transaction():
                    return await self._write(connection, batch, notify, tell=tell)
        async with connection.transaction():
            return await self._write(connection, batch, notify, tell=tell)

    async def _write(
        self, connection: Connection, batch: Batch, notify: str, *, tell: bool = True
    ) -> list[EnqueueOutcome]:
        """Add a batch in the connection's transaction. All chunks notify with the same text, so PostgreSQL sends one.

        Without ``tell`` only the outcomes of jobs come back that may have been left out: the others have all been added.
        """
        outcomes: list[EnqueueOutcome | None] = [None] * batch.size
        for chunk in batch.chunks:
            if self.familiar:
                await self._write_chunk(connection, chunk, notify, outcomes if tell else None)
                continue
            for number, payload, position in chunk.jobs:
                outcomes[position] = await add_by_function(connection, self._schema, chunk.kinds[number - 1], payload)
        mode = batch.mode()
        for piece in pieces(batch.keyed):
            await self._write_keyed(connection, piece, mode, outcomes, tell=tell)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _write_chunk(
        self, connection: Connection, chunk: Chunk, notify: str, outcomes: list[EnqueueOutcome | None] | None
    ) -> None:
        sql, args = text("insert_jobs", self._schema), chunk.args(notify)
        for attempt in range(MOST_TRIES):
            row = await connection.fetchrow(sql, *args)
            if row is not None and row["ids"] is not None:
                if outcomes is not None:
                    chunk.store(row, outcomes)
                return
            await self._create(chunk.kinds, connection, aside=attempt == 0)
        raise names_missing(chunk.kinds)

    async def _write_keyed(
        self,
        connection: Connection,
        left: dict[str, Keyed],
        mode: JobKeyMode | None,
        outcomes: list[EnqueueOutcome | None],
        *,
        tell: bool,
    ) -> None:
        """Add jobs with keys; those whose key's job was claimed at that moment are sent again."""
        at_once = mode in {JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT}
        sql = text("add_keyed_jobs" if at_once else "add_jobs_by_mode", self._schema)
        for _ in range(MOST_TRIES):
            last = mode is JobKeyMode.PRESERVE_RUN_AT if at_once else [job.kind.mode.value for job in left.values()]
            for row in await connection.fetch(sql, *keyed_args(left.values()), last):
                job = left.pop(row["key"])
                if tell or not at_once:
                    job.store(row, outcomes, at_once=at_once)
            if not left:
                return
        raise lost_races(next(iter(left)))

    async def _create_unknown(self, kinds: list[Kind], connection: Connection) -> None:
        """Create the names that this client has not met before, if they are missing."""
        unknown = [kind for kind in kinds if (kind.task, kind.queue) not in self._known]
        if unknown and self.familiar:  # add_job creates them itself
            await self._create(unknown, connection, aside=True)

    def _has_spare_connection(self) -> bool:
        return self._pool.get_idle_size() > 0 or self._pool.get_size() < self._pool.get_max_size()

    async def _create(self, kinds: list[Kind], connection: Connection, *, aside: bool) -> None:
        """Create the rows of tasks and queues that are missing, committed before anything else if possible.

        A transaction that holds new names until its end makes others wait that create the same. So when the connection is
        in one, another connection does it (``aside``), if the pool has one to spare: the caller's transactions may hold
        them all, or may have created the name themselves, and then nobody else can.
        """
        names = (
            sorted({kind.task for kind in kinds}),
            sorted({kind.queue for kind in kinds if kind.queue is not None}),
        )
        sql = text("create_names", self._schema)
        if aside and connection.is_in_transaction() and self._has_spare_connection():
            try:
                async with self._pool.acquire(timeout=_ASIDE_SECONDS) as other:
                    await other.execute(sql, *names, timeout=_ASIDE_SECONDS)
            except TimeoutError:
                await connection.execute(sql, *names)
                return  # not known: the transaction may be rolled back
        else:
            await connection.execute(sql, *names)
            if connection.is_in_transaction():
                return
        if len(self._known) + len(kinds) > _MOST_KNOWN:
            self._known.clear()
        self._known.update((kind.task, kind.queue) for kind in kinds)
