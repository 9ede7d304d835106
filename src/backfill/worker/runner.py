"""WorkerRunner: a worker in three ways: until told to stop, in the background, or over what is due now."""

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from backfill.client import BackfillClient
from backfill.cron import CronItem, parse_crontab, warn_if_never
from backfill.db import Borrowed, check_writable, once_ready, target
from backfill.errors import ConfigurationError, CrontabError, CrontabProblem
from backfill.hooks import (
    DEFAULT_BUFFER,
    Event,
    EventStream,
    HookRegistry,
    Observation,
    Plugin,
    ShutdownReason,
    WorkerInit,
)
from backfill.model import Task, TaskHandler
from backfill.sql import text
from backfill.worker.config import WorkerConfig
from backfill.worker.executables import executables
from backfill.worker.handler import Handler, make_handler
from backfill.worker.worker import Worker

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)


class WorkerRunnerBuilder:
    """Collects what a WorkerRunner runs; made by ``WorkerRunner.builder``."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._handlers: dict[str, Handler] = {}
        self._hooks = HookRegistry()
        self._cron: dict[str, CronItem] = {}

    @property
    def config(self) -> WorkerConfig:
        """The configuration that it was made with."""
        return self._config

    def define_job(self, handler: Task[Any] | type[TaskHandler]) -> Self:
        """Run the jobs of a task.

        Args:
            handler: A function with ``@task``, or a class with ``TaskHandler``.

        Raises:
            ConfigurationError: It can't run jobs, or another handler has the same identifier; both places are named.
        """
        self._define(make_handler(handler))
        return self

    def define_executables(self, folder: str | os.PathLike[str]) -> Self:
        """Run jobs with the executable files of a folder; a file's path in there, without extensions, is the task's name.

        Args:
            folder: The folder; those in it count, too.

        Raises:
            ConfigurationError: There is no such folder or no task in it, a file is not as it should be, or another handler has
                the same identifier.
        """
        for made in executables(folder):
            self._define(made)
        return self

    def _define(self, made: Handler) -> None:
        other = self._handlers.setdefault(made.identifier, made)
        if other is not made and other.function is not made.function:
            raise ConfigurationError(
                f"two handlers are called {made.identifier!r}: at {other.options.where} and at {made.options.where}"
            )

    def add_cron_schedule(self, item: str | CronItem) -> Self:
        """Add a task's jobs at set times, for as long as ``run_until_cancelled`` runs.

        Args:
            item: A line of a crontab, such as ``"0 4 * * 1-5 reports ?fill=1d"``, or an item.

        Raises:
            CrontabError: It is no such line, or another item has its identifier.
        """
        if isinstance(item, str):
            items = parse_crontab(item)
            if len(items) != 1:
                expected = "one line of a crontab (add_crontab takes several)"
                raise CrontabError(CrontabProblem(expected, f"{len(items)} items in {item[:80]!r}"))
            return self._add_items(items)
        if not isinstance(item, CronItem):
            raise CrontabError(CrontabProblem("a line of a crontab or a CronItem", f"{item!r:.80}"))
        warn_if_never(item, "an item in code")
        return self._add_items([item])

    def add_crontab(self, text: str) -> Self:
        """Add the items of a crontab.

        Raises:
            CrontabError: A line can't be read (all bad ones are told), or another item has the identifier of one.
        """
        return self._add_items(parse_crontab(text))

    @property
    def cron_items(self) -> tuple[CronItem, ...]:
        """The items that were added."""
        return tuple(self._cron.values())

    def _add_items(self, items: Sequence[CronItem]) -> Self:
        for item in items:
            if item.identifier in self._cron:
                expected = f"another identifier, such as ?id={item.identifier}-2"
                raise CrontabError(
                    CrontabProblem(expected, f"{item.identifier!r}, which an item has that was added before")
                )
        self._cron.update((item.identifier, item) for item in items)
        return self

    def add_plugin(self, plugin: Plugin) -> Self:
        """Have a plugin register its handlers, at once.

        Raises:
            ConfigurationError: It is no plugin, or registers what can't be.
        """
        self._hooks.add_plugin(plugin)
        return self

    def on(self, event: type[E] | str, handler: Callable[[E], Any]) -> Self:
        """Register a handler of an event.

        Args:
            event: The event's class, or its name such as ``job_complete``.
            handler: A function of the event, sync or async.

        Raises:
            ConfigurationError: There is no such event, or the handler can't be called with one.
        """
        self._hooks.on(event)(handler)
        return self

    async def build(self) -> "WorkerRunner":
        """Connect, install the schema if need be, and give the runner.

        A server that says that it is starting up, or has no connection left, is waited for up to 30 seconds.

        Raises:
            ConfigurationError: No job was defined.
            DatabaseError: The database can't be reached, or takes no writes.
            SchemaError: The schema there does not fit, or the role can't use it.
        """
        if not self._handlers:
            raise ConfigurationError("no job is defined: call define_job before build")
        client = BackfillClient(self._config.database_url, schema=self._config.schema, hooks=self._hooks)
        await once_ready(client.open)
        runner = WorkerRunner(self._config, tuple(self._handlers.values()), client, self.cron_items)
        self._warn_of_tasks()
        where = target(self._config.database_url)
        try:
            async with Borrowed(client.pool, f"cannot use {where}") as connection:
                await check_writable(connection, where)
            event = WorkerInit(pool=client.pool, schema=client.schema, concurrency=runner.worker_count)
            await self._hooks.observe(event)
        except BaseException:
            await client.close()
            raise
        return runner

    def _warn_of_tasks(self) -> None:
        """A misspelt task looks like one that other workers run."""
        for item in self.cron_items:
            if item.task not in self._handlers:
                logger.warning(
                    "cron item %s adds jobs of task %s, which this worker does not run", item.identifier, item.task
                )


class WorkerRunner:
    """Runs jobs with the handlers that it was built with.

    Use it as an async context manager, or call ``close`` when it is no longer needed: it holds a pool of connections.
    """

    def __init__(
        self,
        config: WorkerConfig,
        handlers: tuple[Handler, ...],
        client: BackfillClient,
        cron_items: tuple[CronItem, ...] = (),
    ) -> None:
        self._cron_items = cron_items
        self._config = config
        self._handlers = handlers
        self._client = client
        self._worker: Worker | None = None
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()

    @staticmethod
    def builder(config: WorkerConfig) -> WorkerRunnerBuilder:
        """Begin to build a runner with that configuration."""
        return WorkerRunnerBuilder(config)

    @property
    def client(self) -> BackfillClient:
        """A client of the same database and schema."""
        return self._client

    @property
    def worker_count(self) -> int:
        """How many jobs it runs at once: the slots of all lanes."""
        return self._config.concurrency

    @property
    def dlq_processor_enabled(self) -> bool:
        """Whether jobs that fail for good go to the dead letter queue."""
        return self._config.dlq_processor_interval is not None

    @property
    def worker(self) -> Worker | None:
        """The worker that runs or ran last; None before."""
        return self._worker

    async def run_until_cancelled(self, stop: asyncio.Event, *, abandon: bool = False) -> int:
        """Run jobs until ``stop`` is set, then stop in order, within the configuration's ``shutdown_timeout``.

        Cron items are scheduled meanwhile.

        Args:
            stop: Set it to stop.
            abandon: Hand back, at the end of that time, jobs whose handlers can't be cancelled, rather than wait for them; and
                end the process if such a handler still runs when the worker's lease has lapsed. Only for a process that
                exits right after: such a handler still runs.

        Returns:
            How many jobs were abandoned so.

        Raises:
            BreakingMigrationError: While it ran, the schema was taken to a revision that this version cannot work with; it
                stopped in order first.
        """
        self._worker = Worker(self._config, self._handlers, self._client, cron=self._cron_items)
        with self._ending_streams():
            return await self._worker.run(stop, abandon=abandon)

    def spawn_background(self, stop: asyncio.Event) -> asyncio.Task[int]:
        """``run_until_cancelled`` in a task of its own. Await the task to wait for the end; cancelling it stops at once."""
        return asyncio.create_task(self.run_until_cancelled(stop), name="backfill-worker")

    def hurry(self) -> None:
        """During a stop: cancel the handlers that still run now, rather than later."""
        if self._worker is not None:
            self._worker.hurry.set()

    async def process_available_jobs(self, *, abandon: bool = False) -> int:
        """Run what is due now, and what these jobs add to run at once; leave retries and later times.

        Args:
            abandon: End the process if a handler that can't be cancelled still runs when the worker's lease has lapsed. Only
                for a process that does nothing else.

        Returns:
            How many runs there were, failures included.
        """
        began_at = await self._client.pool.fetchval(text("database_time", self._config.schema))
        self._worker = Worker(self._config, self._handlers, self._client, began_at=began_at)
        with self._ending_streams():
            return await self._worker.drain(abandon=abandon)

    # -- events ---------------------------------------------------------------------------------

    @property
    def hooks(self) -> HookRegistry:
        """The handlers that its builder, and ``on``, have registered."""
        return self._client.hooks

    def on(self, event: type[E] | str, handler: Callable[[E], Any]) -> Self:
        """Register a handler of an event, also while it runs; as on the builder.

        Raises:
            ConfigurationError: There is no such event, or the handler can't be called with one.
        """
        self.hooks.on(event)(handler)
        return self

    def events(self, *events: type[Observation] | str, buffer: int = DEFAULT_BUFFER) -> EventStream:
        """What happens from now on, as an async iterator: ``async for event in runner.events(JobComplete, JobFail)``.

        It never slows the worker: if the reader falls behind by more than ``buffer`` events, further ones are dropped, which is
        logged, and counted in the stream's ``dropped``. It ends when the worker has stopped, and when the runner is closed.

        Args:
            events: Classes or names of observations; none = all of them.
            buffer: How many events may wait to be read, 1 to 1,000,000.

        Raises:
            ConfigurationError: There is no such event, or it is one that is asked rather than told.
            InvalidJob: The buffer's size is out of range.
        """
        stream = self.hooks.subscribe(*events, buffer=buffer)
        self._streams.add(stream)
        return stream

    def signalled(self) -> None:
        """Note that a signal is why it stops: ``WorkerShutdown`` then says so. Call it before setting the stop event."""
        if self._worker is not None:
            self._worker.reason = ShutdownReason.SIGNAL

    @contextlib.contextmanager
    def _ending_streams(self) -> Iterator[None]:
        try:
            yield
        finally:
            for stream in list(self._streams):
                stream.end()

    async def close(self) -> None:
        """Close the connections, and end the streams of events. Safe to call twice."""
        with self._ending_streams():
            await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
