"""BackfillClient: the operations of this package with a pool behind them."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from backfill.client import cleanup, dlq, dlq_bulk, dlq_files, dlq_requeue, dlq_scanner, jobs
from backfill.client import inspect as look
from backfill.client.enqueuer import Enqueuer
from backfill.client.methods import adding, operation, streaming
from backfill.db import DEFAULT_SCHEMA, Borrowed, Pool, check_schema_name, close_pool, open_pool
from backfill.errors import ConfigurationError
from backfill.hooks import HookRegistry, Plugin
from backfill.schema import open_schema

_NOT_OPEN = "the client is not open: use `async with BackfillClient(...)`, or await its open()"


class BackfillClient:
    """Adds jobs, and looks at, changes and dead-letters them.

    Use it as an async context manager, or call ``open`` and ``close``.

    Attributes:
        hooks: Its registry.

    Args:
        url_or_pool: A database URL, for a pool of its own; or an open asyncpg pool, which is not closed with the client.
        schema: The schema's name, unquoted.
        install: Install what is missing of the schema when opening.
        plugins: Hooks of a client are those of ``BeforeJobSchedule``: they see each job that it adds.
        hooks: A registry to use, and to register the plugins with; None = one of its own.

    Raises:
        ConfigurationError: PostgreSQL cannot have a schema of that name, or a plugin is none.
    """

    def __init__(
        self,
        url_or_pool: str | Pool,
        schema: str = DEFAULT_SCHEMA,
        install: bool = True,
        *,
        plugins: Iterable[Plugin] = (),
        hooks: HookRegistry | None = None,
    ) -> None:
        self.hooks = HookRegistry() if hooks is None else hooks
        for plugin in plugins:
            self.hooks.add_plugin(plugin)
        self._url = url_or_pool if isinstance(url_or_pool, str) else None
        self._given = None if isinstance(url_or_pool, str) else url_or_pool
        self._schema = check_schema_name(schema)
        self._install = install
        self._pool: Pool | None = None
        self._enqueuer: Enqueuer | None = None
        self.background: set[asyncio.Task[None]] = set()  # ends with the client

    async def open(self) -> Self:
        """Connect, install the schema if asked to, and check that this role can work on it; return the client.

        Raises:
            DatabaseError: The database cannot be reached.
            SchemaError: The schema does not fit, is missing (without ``install``), or row-level security hides its jobs
                from this role; the message says what to do.
        """
        if self._pool is None:
            pool = self._given or await open_pool(str(self._url))
            try:
                async with Borrowed(pool, "cannot open the client") as connection:
                    state = await open_schema(connection, self._schema, installing=self._install)
            except BaseException:
                if pool is not self._given:
                    await close_pool(pool)
                raise
            enqueuer = Enqueuer(pool, self._schema, self.hooks, familiar=state.is_familiar)
            self._pool, self._enqueuer = pool, enqueuer
        return self

    async def close(self) -> None:
        """Announce the jobs that have not been announced yet, and close the pool unless it was given. Safe to call twice."""
        pool, enqueuer = self._pool, self._enqueuer
        if pool is None or enqueuer is None:
            return
        self._pool = self._enqueuer = None
        await dlq_scanner.end(self.background)
        await enqueuer.close()
        if pool is not self._given:
            await close_pool(pool)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def schema(self) -> str:
        """The schema's name, unquoted."""
        return self._schema

    @property
    def pool(self) -> Pool:
        """The connections that the client works with."""
        if self._pool is None:
            raise ConfigurationError(_NOT_OPEN)
        return self._pool

    @property
    def enqueuer(self) -> Enqueuer:
        """What adds jobs for the client."""
        if self._enqueuer is None:
            raise ConfigurationError(_NOT_OPEN)
        return self._enqueuer

    enqueue = adding(Enqueuer.enqueue)
    enqueue_task = adding(Enqueuer.enqueue_task)
    enqueue_many = adding(Enqueuer.enqueue_many)
    enqueue_stream = adding(Enqueuer.enqueue_stream)

    get_job = operation(look.get_job)
    list_jobs = operation(look.list_jobs)
    count_jobs = operation(look.count_jobs)

    remove_job = operation(jobs.remove_job)
    complete_jobs = operation(jobs.complete_jobs)
    cancel_jobs = operation(jobs.cancel_jobs)
    fail_jobs = operation(jobs.fail_jobs)
    reschedule_jobs = operation(jobs.reschedule_jobs)
    retry_jobs = operation(jobs.retry_jobs)
    force_unlock_workers = operation(jobs.force_unlock_workers)
    cleanup = operation(cleanup.cleanup)

    init_dlq = operation(dlq.init_dlq)
    list_dlq_jobs = operation(dlq.list_dlq_jobs)
    get_dlq_job = operation(dlq.get_dlq_job)
    dlq_stats = operation(dlq.dlq_stats)
    page_dlq_jobs = operation(dlq.page_dlq_jobs)
    requeue_dlq_job = operation(dlq_requeue.requeue_dlq_job)
    edit_dlq_job = operation(dlq_requeue.edit_dlq_job)
    delete_dlq_job = operation(dlq.delete_dlq_job)
    delete_dlq_by_job_key = operation(dlq.delete_dlq_by_job_key)
    add_to_dlq = operation(dlq.add_to_dlq)
    requeue_dlq_jobs = operation(dlq_bulk.requeue_dlq_jobs)
    delete_dlq_jobs = operation(dlq_bulk.delete_dlq_jobs)
    prune_dlq_jobs = operation(dlq_bulk.prune_dlq_jobs)
    export_dlq_jobs = streaming(dlq_files.export_dlq_jobs)
    import_dlq_jobs = operation(dlq_files.import_dlq_jobs)
    start_dlq_processor = dlq_scanner.start_dlq_processor
    process_failed_jobs = operation(dlq_scanner.process_failed_jobs)
