"""One worker: its lanes and slots, the loops that claim and release, and how it starts and stops.

Life: start (connect, register the tasks, look for used-up jobs) → run → stop. A stop has three phases within the time it is
given: no more claims and everything that has not begun goes back; running handlers may finish; in the last seconds they are
cancelled and their jobs go back, the attempt not counted. A handler that can't be cancelled (a thread, or one that swallows
the cancellation) is waited for, since its job must not start elsewhere while it runs; a process that is going to exit at
once (the command line) asks to abandon them instead: their jobs go back in the last statement, and it exits.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Final

from backfill.client import BackfillClient
from backfill.client.dlq_scanner import DeadLetterScanner
from backfill.cron import CronItem, CronScheduler
from backfill.db import (
    CLAIM,
    DRIVER_ERRORS,
    LISTEN,
    MAINTENANCE,
    RELEASE,
    WORKER_SETTINGS,
    Limit,
    Listener,
    Session,
    connect,
)
from backfill.errors import BackfillError
from backfill.hooks import ShutdownReason
from backfill.sql import text
from backfill.worker.claim import Claimer
from backfill.worker.claimed import Claimed, HandBack
from backfill.worker.config import DEAD_LETTER_LANE, QueueConfig, WorkerConfig
from backfill.worker.handler import Handler
from backfill.worker.lane import STALE_SECONDS, gaps, make_lanes
from backfill.worker.link import Link
from backfill.worker.maintenance import notified_count
from backfill.worker.processes import Processes
from backfill.worker.reconcile import reconcile
from backfill.worker.release import Releaser
from backfill.worker.slot import RETURN_DELAY, Slot
from backfill.worker.teller import Teller

logger = logging.getLogger(__name__)

CHANNEL: Final = "jobs:insert"
_LAST_PHASE: Final = 5.0  # seconds of a stop that are for handlers which have to be cancelled
_CLAIM_ENDS: Final = 2.0  # seconds that a claim under way is given at a stop
_RECONCILE: Final = 600.0  # seconds between comparisons of our locks with memory when nothing was lost
_NAG: Final = 30.0  # seconds between warnings about handlers that can't be cancelled


class Worker:
    """Runs jobs until it is told to stop, or until nothing due is left.

    Attributes:
        id: ``backfill-`` and 18 hex digits, new for each Worker; claims' tokens begin with it.
        hurry: Set it to cancel running handlers at once during a stop.
        reason: Why it stops, or stopped.
        cron: What adds the jobs of cron items, in ``run``; None without items.
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
        self.lanes = make_lanes(config.queue_configs)
        self._config = config
        self._client = client
        self._drains = began_at is not None
        self._released = asyncio.Event()
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix=self.id)
        self._processes = Processes()
        self._claim_link = Link(partial(self._connect, CLAIM), config.schema)
        self._release_link = Link(partial(self._connect, RELEASE), config.schema)
        self.listener = Listener(
            partial(self._connect, LISTEN),
            [CHANNEL],
            self._on_notify,
            send=None if config.listen_url is None else self._send,
            on_up=self._on_up,
        )
        self.teller = Teller(client.hooks, worker_id=self.id, on_room=self._on_room)
        self.releaser = Releaser(
            self._release_link,
            worker_id=self.id,
            bury=config.dlq_processor_interval is not None,
            clean_up=client.hooks.switches.dlq_cleanup,
            log_jobs=config.log_jobs,
            teller=self.teller,
            on_released=self._on_released,
            on_retry=self._on_retry,
            on_stale=self._on_stale,
        )
        self.claimer = Claimer(
            self._claim_link,
            worker_id=self.id,
            lanes=self.lanes,
            handlers=handlers,
            releaser=self.releaser,
            teller=self.teller,
            poll_interval=config.poll_interval.total_seconds(),
            is_listening=lambda: self.listener.proven,
            reconcile=self._reconcile,
            began_at=began_at,
            forbidden_flags=config.forbidden_flags,
        )
        self.slots = [
            Slot(
                lane,
                client=client,
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
        self.cron = CronScheduler(cron, config.schema, self._maintain, hooks=client.hooks) if cron else None
        self._slot_tasks: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._releasing: asyncio.Task[None] | None = None

    # -- running --------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, *, abandon: bool = False) -> int:
        """Run jobs until ``stop`` is set, then stop.

        Args:
            stop: Set it to begin the stop.
            abandon: At the end of the stop, hand back jobs whose handlers can't be cancelled, instead of waiting for them.
                Only for a process that exits right after.

        Returns:
            How many such jobs were abandoned.

        Raises:
            RuntimeError: One of the worker's own loops or slots ended in an unforeseen way; it was stopped in order first.
        """
        self._warn_of_gaps()
        await self.teller.started(self._client.pool)
        await self.listener.start()
        self._begin()
        if self._config.dlq_processor_interval is not None:
            interval = self._config.dlq_processor_interval.total_seconds()
            scanner = DeadLetterScanner(self._maintain, self._config.schema, interval, moved_by=self.id)
            self._loops.append(asyncio.create_task(scanner.run(), name="dead letters"))
        if self.cron is not None:
            self._loops.append(asyncio.create_task(self.cron.run(), name="cron"))
        logger.info("worker %s started: %s", self.id, ", ".join(_shown(lane.config) for lane in self.lanes))
        waiter = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([waiter, *self._loops, *self._slot_tasks], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.hurry.set()
            await self._stop_to_the_end(abandon=False)
            raise
        finally:
            waiter.cancel()
        ended = self._ended()
        if ended:
            self.reason = ShutdownReason.ERROR
        abandoned = await self._stop_to_the_end(abandon=abandon)
        for part in ended:
            raise RuntimeError(f"the worker's task {part.get_name()!r} ended by itself") from part.exception()
        return abandoned

    async def drain(self) -> int:
        """Run what is due, until nothing due is left and nothing runs.

        Returns:
            How many runs ended, failures included.
        """
        await self.teller.started(self._client.pool)
        self._begin()
        try:
            await asyncio.wait([*self._loops, *self._slot_tasks], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.hurry.set()
            await self._stop_to_the_end(abandon=False)
            raise
        ended = [part for part in self._ended() if part is not self._claiming or part.exception() is not None]
        if ended:
            self.reason = ShutdownReason.ERROR
        await self._stop_to_the_end(abandon=False)
        for part in ended:
            raise RuntimeError(f"the worker's task {part.get_name()!r} ended by itself") from part.exception()
        return self.releaser.ran

    def _begin(self) -> None:
        """Start the slots and the loops that every worker has."""
        self._slot_tasks = [slot.start() for slot in self.slots]
        self._claiming = asyncio.create_task(self.claimer.run(), name="claim")
        self._releasing = asyncio.create_task(self.releaser.run(), name="release")
        self._loops = [
            self._claiming,
            self._releasing,
            asyncio.create_task(self.teller.run(), name="tell"),
            asyncio.create_task(self._watch(), name="watch"),
        ]

    def _ended(self) -> list[asyncio.Task[None]]:
        return [part for part in (*self._loops, *self._slot_tasks) if part.done()]

    async def _connect(self, limit: Limit) -> Session:
        """A connection for the purpose that the limit is for."""
        settings = WORKER_SETTINGS if limit in (CLAIM, RELEASE) else {}
        named = {**settings, "application_name": f"{self.id}:{limit.name}"}
        own = self._config.listen_url if limit is LISTEN else None
        return await connect(own or self._config.database_url, limit=limit, settings=named)

    async def _send(self, channel: str, payload: str) -> None:
        """Send a notification the way that those about jobs are sent."""
        async with self._maintain() as connection:
            await connection.fetchval(text("send_notification", self._config.schema), channel, payload)

    @contextlib.asynccontextmanager
    async def _maintain(self) -> AsyncIterator[Session]:
        """A connection for something that is seldom done. Not one of the pool's, which handlers may have exhausted."""
        connection = await self._connect(MAINTENANCE)
        try:
            yield connection
        finally:
            await connection.leave()

    # -- what the parts tell each other -----------------------------------------------------------

    def _on_notify(self, _channel: str, payload: str) -> None:
        if notified_count(payload) > 0:
            self.claimer.on_notify()

    def _on_up(self) -> None:
        self.claimer.look()

    def _on_released(self, queue_freed: bool) -> None:
        self._released.set()
        if queue_freed:
            self.claimer.on_queue_freed()
        elif self._drains:
            self.claimer.look()
        else:
            self.claimer.wake()  # it may have waited for room among the outcomes

    def _on_room(self) -> None:
        self.claimer.wake()

    def _on_stale(self) -> None:
        self.claimer.look_and_ask()

    def _on_retry(self, seconds: float) -> None:
        if not self._drains:
            self.claimer.look_in(seconds)

    async def _reconcile(self) -> bool:
        by_job = {id(slot.current): slot for slot in self.slots if slot.current is not None}

        def lost(job: Claimed) -> None:
            if id(job) in by_job and by_job[id(job)].current is job:
                by_job[id(job)].cancel("lost")

        if not self._claim_link.is_open:
            self.listener.doubt()
        async with self._maintain() as connection:
            return await reconcile(
                connection,
                self._config.schema,
                worker_id=self.id,
                lost_connection=None if self._claim_link.is_open else f"{self.id}:{CLAIM.name}",
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
            for lane in self.lanes:
                for job in lane.take_stale(now):
                    self.releaser.settle(job, HandBack())
            if now - compared_at > _RECONCILE:
                compared_at = now
                self.claimer.compare()

    def _warn_of_gaps(self) -> None:
        left_out = gaps(self.lanes)
        if left_out:
            ranges = ", ".join(f"{low}..{high}" for low, high in left_out)
            logger.warning("no lane of this worker runs jobs of the priorities %s", ranges)
        for lane in self.lanes:
            if lane.config.queue_name is not None and lane.config.concurrency > 1 and lane.config != DEAD_LETTER_LANE:
                logger.warning(
                    "lane %s has %d slots, but the jobs of a serial queue run one at a time",
                    lane.config.name,
                    lane.config.concurrency,
                )

    # -- stopping -------------------------------------------------------------------------------

    async def _stop_to_the_end(self, *, abandon: bool) -> int:
        """Stop, also when whoever waits for it is cancelled meanwhile; that hurries it, and is raised at the end."""
        self.claimer.stopping = True  # at once: slots that were cancelled together with this look at it
        if self.cron is not None:
            self.cron.stop()
        cancelled: asyncio.CancelledError | None = None
        stopping = asyncio.create_task(self._stop(abandon=abandon), name="stop")
        while True:
            try:
                abandoned = await asyncio.shield(stopping)
                break
            except asyncio.CancelledError as error:
                cancelled = error
                self.hurry.set()
                if stopping.done():  # everything was cancelled, as asyncio.run does at its end
                    stopping = asyncio.create_task(self._stop(abandon=False), name="stop")
        if cancelled is not None:
            raise cancelled
        return abandoned

    async def _stop(self, *, abandon: bool) -> int:
        total = self._config.shutdown_timeout.total_seconds()
        deadline = time.monotonic() + total
        self.claimer.stopping = True
        self.claimer.wake()
        await self._end_claiming(min(_CLAIM_ENDS, total / 4))
        for lane in self.lanes:
            for job in lane.take_all():
                self.releaser.settle(job, HandBack())
        await self._end_slots(deadline - min(_LAST_PHASE, total / 2))
        if self.hurry.is_set():
            deadline = min(deadline, time.monotonic() + _LAST_PHASE)
        for slot in self.slots:
            slot.cancel("stop")
        await self._slots_done(deadline - min(1.0, total / 4))
        stuck = [slot for slot in self.slots if slot.current is not None]
        if stuck and abandon:
            for slot in stuck:
                if slot.current is not None:
                    self.releaser.settle(slot.current, HandBack(RETURN_DELAY, interrupted=True))
        elif stuck:
            await self._wait_for_stuck()
            stuck = []
            deadline = time.monotonic() + total
        await self._all_released(deadline)
        await self.teller.finish(deadline)
        await self._close(deadline, wait_for_threads=not stuck)
        return len(stuck)

    async def _end_claiming(self, patience: float) -> None:
        """Wait for the claim under way, if there is one; what it claimed although we never heard is handed back."""
        if self._claiming is None:
            return
        await asyncio.wait([self._claiming], timeout=patience)
        if not self._claiming.done():
            self._claiming.cancel()
            await asyncio.wait([self._claiming])
        if self.claimer.in_doubt:
            try:
                async with asyncio.timeout(patience):
                    await self._reconcile()
            except (*DRIVER_ERRORS, BackfillError) as error:
                logger.warning(
                    "jobs of the last claim, whose reply was lost, may stay locked by %s: %s",
                    self.id,
                    str(error) or type(error).__name__,
                )

    async def _end_slots(self, until: float) -> None:
        """Let running handlers finish, until then or until somebody is in a hurry."""
        for slot, task in zip(self.slots, self._slot_tasks, strict=True):
            slot.stopping = True
            if slot.current is None:
                task.cancel()
            elif task.done():  # it ended in an unforeseen way
                self.releaser.settle(slot.current, HandBack(RETURN_DELAY, interrupted=True))
                slot.current = None
        hurry = asyncio.create_task(self.hurry.wait())
        running = {task for task in self._slot_tasks if not task.done()}
        while running and not hurry.done() and time.monotonic() < until:
            done, _ = await asyncio.wait(
                [*running, hurry], timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            running -= done
        hurry.cancel()

    async def _slots_done(self, until: float) -> None:
        running = [task for task in self._slot_tasks if not task.done()]
        if running:
            await asyncio.wait(running, timeout=max(0.0, until - time.monotonic()))

    async def _wait_for_stuck(self) -> None:
        while any(not task.done() for task in self._slot_tasks):
            names = [f"{slot.current.id} ({slot.current.handler.identifier})" for slot in self.slots if slot.current]
            logger.warning("stopping, but these jobs can't be cancelled and still run: %s", ", ".join(names))
            await self._slots_done(time.monotonic() + _NAG)

    async def _all_released(self, until: float) -> None:
        """Wait until every outcome is written, if the database lets us in time."""
        if (
            self._releasing is not None and self._releasing.done()
        ):  # cancelled with everything else, as asyncio.run does
            self._releasing = asyncio.create_task(self.releaser.run(), name="release")
            self._loops.append(self._releasing)
        while self.releaser.held and time.monotonic() < until:
            self._released.clear()
            waiting = asyncio.create_task(self._released.wait())
            await asyncio.wait([waiting], timeout=max(0.0, until - time.monotonic()))
            waiting.cancel()
        if self.releaser.held:
            logger.error(
                "%d jobs could not be released before the end of the stop; they stay locked by %s",
                len(self.releaser.held),
                self.id,
            )

    async def _close(self, deadline: float, *, wait_for_threads: bool) -> None:
        for task in [*self._loops, *(task for task in self._slot_tasks if wait_for_threads)]:
            task.cancel()
        ended = await asyncio.gather(*self._loops, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                logger.error("a loop of worker %s failed", self.id, exc_info=error)
        await self.teller.stopped(self._client.pool, self.reason, deadline)
        await self.listener.close()
        await self._claim_link.close()
        await self._release_link.close()
        self._threads.shutdown(wait=wait_for_threads, cancel_futures=True)
        await self._processes.close()
        logger.info("worker %s stopped after %d runs", self.id, self.releaser.ran)


def _shown(config: QueueConfig) -> str:
    if config.queue_name is not None:
        return f"lane {config.name} ({config.concurrency} for queue {config.queue_name})"
    low, high = config.pieces
    return f"lane {config.name} ({config.concurrency} for priorities {low}..{high})"
