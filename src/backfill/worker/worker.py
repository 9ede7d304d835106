"""One worker: its lanes and slots, the loops that claim and release, and how it starts and stops.

Life: start (have a row among the workers, connect, register the tasks, look for used-up jobs) → run → stop (see ``shutdown``).
Meanwhile the lease may lapse (see ``heartbeat``): then what has not begun goes back, what runs is cancelled, and nothing is
claimed until the worker is back among the living. Outcomes are written all the same: their tokens decide.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Final

from backfill.client import BackfillClient
from backfill.cron import CronItem, CronScheduler
from backfill.db import CLAIM, LISTEN, RELEASE, Limit, Listener
from backfill.errors import BreakingMigrationError
from backfill.hooks import ShutdownReason
from backfill.worker.cancel import Canceller
from backfill.worker.claim import Claimer
from backfill.worker.claimed import Claimed, HandBack
from backfill.worker.config import WorkerConfig
from backfill.worker.connections import POOL, Connections
from backfill.worker.handler import Handler
from backfill.worker.heartbeat import Heartbeat
from backfill.worker.lane import STALE_SECONDS, make_lanes, warn_of_gaps
from backfill.worker.lease import Lease
from backfill.worker.link import Link
from backfill.worker.maintenance import notified_count
from backfill.worker.migrations import MIGRATE, MigrationWatch
from backfill.worker.processes import Processes
from backfill.worker.reconcile import reconcile
from backfill.worker.recovery import Recovery
from backfill.worker.release import Releaser
from backfill.worker.shutdown import Shutdown
from backfill.worker.slot import Slot
from backfill.worker.sweep import Sweeper, Swept
from backfill.worker.teller import Teller
from backfill.worker.upkeep import Upkeep
from backfill.worker.vitals import Listeners, Vitals, worker_row

logger = logging.getLogger(__name__)

CHANNEL: Final = "jobs:insert"
CANCEL_CHANNEL: Final = "backfill:cancel"
_RECONCILE: Final = 600.0  # seconds between comparisons of our locks with memory when nothing was lost


class Worker:
    """Runs jobs until it is told to stop, or until nothing due is left.

    Attributes:
        id: ``backfill-`` and 18 hex digits, new for each Worker; claims' tokens begin with it.
        hurry: Set it to cancel running handlers at once during a stop.
        reason: Why it stops, or stopped.
        cron: What adds the jobs of cron items, in ``run``; None without items.
        lease: By which it holds its jobs.
        slot_tasks: The slots at work, in the order of ``slots``.
        loops: Everything else that runs.
        claiming: The loop that claims; None before the start.
        releasing: The loop that releases; None before the start.
        released: Set after each release.
    """

    def __init__(
        self,
        config: WorkerConfig,
        handlers: Sequence[Handler],
        client: BackfillClient,
        *,
        cron: Sequence[CronItem] = (),
        began_at: datetime | None = None,
    ) -> None:
        self.id = f"backfill-{secrets.token_hex(9)}"
        self.hurry = asyncio.Event()
        self.reason = ShutdownReason.GRACEFUL
        self.config = config
        self.lease = Lease(config.lease.total_seconds())
        self.lanes = make_lanes(config.queue_configs)
        self.released = asyncio.Event()
        self.slot_tasks: list[asyncio.Task[None]] = []
        self.loops: list[asyncio.Task[None]] = []
        self.claiming: asyncio.Task[None] | None = None
        self.releasing: asyncio.Task[None] | None = None
        self._client = client
        self._drains = began_at is not None
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix=self.id)
        self._processes = Processes()
        self._connections = connections = Connections(config, self.id)
        self._claim_link = Link(partial(connections.connect, CLAIM), config.schema)
        self._release_link = Link(partial(connections.connect, RELEASE), config.schema)
        self._migrations = MigrationWatch(client)
        self.listener = Listener(
            partial(connections.connect, LISTEN),
            [CHANNEL, CANCEL_CHANNEL, MIGRATE],
            self._on_notify,
            send=None if config.listen_url is None else connections.send,
            on_up=self._on_up,
        )
        self.teller = Teller(client.hooks, worker_id=self.id, on_room=self._on_room)
        self.releaser = self._make_releaser()
        self.claimer = self._make_claimer(handlers, began_at)
        self.slots = self._make_slots()
        self.cron = CronScheduler(cron, config.schema, connections.maintenance, hooks=client.hooks) if cron else None
        self.sweeper = self._make_sweeper(handlers)
        self.canceller = Canceller(
            self.slots, connections.maintenance, config.schema, moved_by=self.id, bury=self._buries
        )
        self.upkeep = Upkeep(
            connections.maintenance,
            config,
            worker_id=self.id,
            settle=client.hooks.switches.dlq_cleanup,
            on_orphans=self.sweeper.sweep_orphans,
        )
        self.vitals = Vitals(self.slots, self.releaser.held, STALE_SECONDS)
        self.heartbeat = self._make_heartbeat(handlers)
        self._shutdown = Shutdown(self)

    # -- its parts ------------------------------------------------------------------------------

    @property
    def _buries(self) -> bool:
        """Whether what fails for good goes to the dead letter queue."""
        return self.config.dlq_processor_interval is not None

    def _make_releaser(self) -> Releaser:
        return Releaser(
            self._release_link,
            worker_id=self.id,
            bury=self._buries,
            clean_up=self._client.hooks.switches.dlq_cleanup,
            log_jobs=self.config.log_jobs,
            teller=self.teller,
            on_released=self._on_released,
            on_retry=self._on_retry,
            on_stale=self._on_stale,
            on_back=self._on_back,
        )

    def _make_claimer(self, handlers: Sequence[Handler], began_at: datetime | None) -> Claimer:
        return Claimer(
            self._claim_link,
            worker_id=self.id,
            lanes=self.lanes,
            handlers=handlers,
            releaser=self.releaser,
            teller=self.teller,
            poll_interval=self.config.poll_interval.total_seconds(),
            is_listening=lambda: self.listener.proven,
            reconcile=self.reconcile,
            lease=self.lease,
            began_at=began_at,
            forbidden_flags=self.config.forbidden_flags,
        )

    def _make_slots(self) -> list[Slot]:
        return [
            Slot(
                lane,
                client=self._client,
                worker_id=self.id,
                threads=self._threads,
                processes=self._processes,
                settle=self.releaser.settle,
                wake=self.claimer.wake,
                is_stopping=lambda: self.claimer.stopping,
            )
            for lane in self.lanes
            for _ in range(lane.config.concurrency)
        ]

    def _make_sweeper(self, handlers: Sequence[Handler]) -> Sweeper:
        policies = {handler.identifier: handler.options.retry_policy for handler in handlers}
        return Sweeper(
            self._connections.maintenance,
            self.config.schema,
            moved_by=self.id,
            bury=self._buries,
            recovery=Recovery(self._client.hooks, self.id, policies),
            on_swept=self._on_swept,
        )

    def _make_heartbeat(self, handlers: Sequence[Handler]) -> Heartbeat:
        return Heartbeat(
            partial(self._connections.connect, Limit("heartbeat", self.lease.seconds / 3)),
            self.config.schema,
            lease=self.lease,
            row=worker_row(self.id, self.config.queue_configs, [handler.identifier for handler in handlers]),
            vitals=self.vitals,
            listeners=Listeners(
                self._processes.extend,
                self._on_lapse,
                self._on_renewed,
                self.canceller.on_cancellations,
                self.sweeper.observe,
            ),
        )

    # -- running --------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, *, abandon: bool = False) -> int:
        """Run jobs until ``stop`` is set, then stop.

        Args:
            stop: Set it to begin the stop.
            abandon: At the end of the stop, hand back jobs whose handlers can't be cancelled, instead of waiting for them; and
                end the process if such a handler still runs when the lease ends. Only for a process that exits right after.

        Returns:
            How many such jobs were abandoned.

        Raises:
            DatabaseError: The database refused the worker's row.
            SchemaError: The schema has no table of workers.
            BreakingMigrationError: The schema was taken to a revision that this version cannot work with. The worker was
                stopped in order first.
            RuntimeError: One of the worker's own loops or slots ended in an unforeseen way; likewise.
        """
        warn_of_gaps(self.lanes)
        self.heartbeat.may_exit = abandon
        if not await self._entered(stop):
            return 0
        await self.listener.start()
        self._begin()
        self.loops.append(asyncio.create_task(self.upkeep.run(), name="upkeep"))
        if self.cron is not None:
            self.loops.append(asyncio.create_task(self.cron.run(), name="cron"))
        self.loops.append(asyncio.create_task(self._migrations.run(), name="migrations"))
        logger.info("worker %s started: %s", self.id, ", ".join(map(str, self.lanes)))
        waiter = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([waiter, *self.loops, *self.slot_tasks], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.hurry.set()
            await self._shutdown.to_the_end(abandon=False)
            raise
        finally:
            waiter.cancel()
        ended = self._ended()
        if ended:
            self.reason = ShutdownReason.ERROR
        abandoned = await self._shutdown.to_the_end(abandon=abandon)
        _raise_for(ended)
        return abandoned

    async def drain(self, *, abandon: bool = False) -> int:
        """Run what is due, until nothing due is left and nothing runs.

        Args:
            abandon: End the process if a handler that can't be cancelled still runs when the lease ends.

        Returns:
            How many runs ended, failures included.

        Raises:
            DatabaseError: The database refused the worker's row.
            SchemaError: The schema has no table of workers.
            RuntimeError: One of the worker's own loops or slots ended in an unforeseen way. The worker was stopped in order first.
        """
        self.heartbeat.may_exit = abandon
        await self._entered()
        self._begin()
        try:
            await asyncio.wait([*self.loops, *self.slot_tasks], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.hurry.set()
            await self._shutdown.to_the_end(abandon=False)
            raise
        ended = [part for part in self._ended() if part is not self.claiming or _error_of(part) is not None]
        if ended:
            self.reason = ShutdownReason.ERROR
        await self._shutdown.to_the_end(abandon=False)
        _raise_for(ended)
        return self.releaser.ran

    async def _entered(self, stop: asyncio.Event | None = None) -> bool:
        """Wait until the worker has its row and hooks have been told of its start; False when ``stop`` came first."""
        starting = asyncio.create_task(self._enter(), name="register")
        waiting = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                return True
        except BaseException:
            await self._leave(starting)
            raise
        finally:
            waiting.cancel()
        await self._leave(starting)
        return False

    async def _enter(self) -> None:
        await self._client.name_sessions(self._connections.name_of(POOL))
        await self.heartbeat.start()
        await self.teller.started(self._client.pool)

    async def _leave(self, starting: asyncio.Task[None]) -> None:
        """Take back a start that was not to be."""
        starting.cancel()
        await asyncio.wait([starting])
        await self.teller.stopped(self._client.pool, self.reason, time.monotonic())
        await self.heartbeat.stop(remove=True)

    def _begin(self) -> None:
        """Start the slots and the loops that every worker has."""
        self.slot_tasks = [slot.start() for slot in self.slots]
        self.claiming = asyncio.create_task(self.claimer.run(), name="claim")
        self.releasing = asyncio.create_task(self.releaser.run(), name="release")
        self.loops = [
            self.claiming,
            self.releasing,
            asyncio.create_task(self.teller.run(), name="tell"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self.sweeper.run(), name="sweep"),
        ]

    def _ended(self) -> list[asyncio.Task[None]]:
        return [part for part in (*self.loops, *self.slot_tasks) if part.done()]

    async def close(self, deadline: float, *, wait_for_threads: bool) -> None:
        """End what still runs and close the connections, the heartbeat's last. For ``Shutdown``.

        Args:
            deadline: When the stop is to be over, by the monotonic clock.
            wait_for_threads: Whether no handler runs any more.
        """
        for task in [*self.loops, *(task for task in self.slot_tasks if wait_for_threads)]:
            task.cancel()
        for error in await asyncio.gather(*self.loops, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, BreakingMigrationError):
                logger.error("a loop of worker %s failed", self.id, exc_info=error)
        await self.teller.stopped(self._client.pool, self.reason, deadline)
        await self.listener.close()
        await self.canceller.close()
        await self._claim_link.close()
        await self._release_link.close()
        self._threads.shutdown(wait=wait_for_threads, cancel_futures=True)
        await self._processes.close()
        await self.heartbeat.stop(remove=not self.releaser.held and not self.claimer.in_doubt)
        logger.info("worker %s stopped after %d runs", self.id, self.releaser.ran)

    # -- what the parts tell each other -----------------------------------------------------------

    def _on_notify(self, channel: str, payload: str) -> None:
        if channel == CANCEL_CHANNEL:
            self.heartbeat.hasten()
        elif channel == MIGRATE:
            self._migrations.on_notify(payload)
        elif notified_count(payload) > 0:
            self.claimer.on_notify()

    def _on_up(self) -> None:
        self.claimer.look()
        self._migrations.look()

    def _on_released(self, freed: Sequence[Claimed]) -> None:
        self.released.set()
        if freed:
            self.claimer.on_queues_freed(freed)
        elif self._drains:
            self.claimer.look()
        else:
            self.claimer.wake()  # it may have waited for room among the outcomes

    def _on_room(self) -> None:
        self.claimer.wake()

    def _on_lapse(self) -> None:
        for lane in self.lanes:
            for job in lane.take_all():
                self.releaser.settle(job, HandBack())
        for slot in self.slots:
            if slot.current is not None and not slot.current.fence.stands():
                slot.cancel("lost")

    def _on_renewed(self) -> None:
        if self.claimer.claims:  # else it is the first lease
            self.claimer.compare()
            self.claimer.look_and_ask()

    def _on_swept(self, swept: Swept) -> None:
        self.teller.tell(swept.events)
        self.claimer.look_and_ask()

    def _on_stale(self) -> None:
        self.claimer.look_and_ask()

    def _on_back(self) -> None:
        self.claimer.look_and_ask()

    def _on_retry(self, seconds: float) -> None:
        if not self._drains:
            self.claimer.look_in(seconds)

    async def reconcile(self) -> bool:
        """Compare our locks in the database with what is held here; whether all that was found could be handed back."""
        by_job = {id(slot.current): slot for slot in self.slots if slot.current is not None}

        def lost(job: Claimed) -> None:
            if id(job) in by_job and by_job[id(job)].current is job:
                by_job[id(job)].cancel("lost")

        if not self._claim_link.is_open:
            self.listener.doubt()
        async with self._connections.maintenance() as connection:
            return await reconcile(
                connection,
                self.config.schema,
                worker_id=self.id,
                lost_connection=None if self._claim_link.is_open else self._connections.name_of(CLAIM.name),
                held=self.releaser.held,
                on_lost=lost,
                has_pooler=connection.has_pooler,
            )

    async def _watch(self) -> None:
        """Hand back what has waited in a buffer for too long; compare locks with memory now and then."""
        compared_at = time.monotonic()
        while True:
            await asyncio.sleep(STALE_SECONDS)
            now = time.monotonic()
            self.vitals.beat_of_loop(now)
            for lane in self.lanes:
                for job in lane.take_stale(now):
                    self.releaser.settle(job, HandBack())
            if now - compared_at > _RECONCILE:
                compared_at = now
                self.claimer.compare()


def _error_of(part: "asyncio.Task[None]") -> BaseException | None:
    """Why a loop or slot has ended; None when it has done its work."""
    return asyncio.CancelledError("it was cancelled") if part.cancelled() else part.exception()


def _raise_for(ended: Sequence["asyncio.Task[None]"]) -> None:
    """Tell of the first loop or slot that ended though nobody had told it to."""
    for part in ended:
        error = _error_of(part)
        if isinstance(error, BreakingMigrationError):
            raise error
        raise RuntimeError(f"the worker's task {part.get_name()!r} ended by itself") from error
