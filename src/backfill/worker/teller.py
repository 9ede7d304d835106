"""Telling hooks what the releases of jobs did, beside the releases, which wait for nobody.

What there is to tell comes from what a statement said it has written, so each job is told of once: an outcome that met no row
of its claim, or that is sent again, is not. One is missed when the reply to a statement is lost that was carried out, since
nothing then says what it did. Hooks that are slow make claiming wait once thousands of events do; nothing is dropped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from backfill.db import Pool
from backfill.hooks import (
    FailureReason,
    HookRegistry,
    JobComplete,
    JobFail,
    JobInterrupted,
    JobPermanentlyFail,
    LocalQueueReturnJobs,
    Observation,
    ShutdownReason,
    WorkerShutdown,
    WorkerStart,
)
from backfill.worker.claimed import Claimed, Failure, HandBack, Outcome

logger = logging.getLogger(__name__)

_TOGETHER: Final = 100  # events whose handlers run at the same time
_BEHIND: Final = 5_000  # events that wait, from which on claiming waits too
_LAST_WORD: Final = 0.5  # seconds that hooks have at the end of a stop

Settled = tuple[Claimed, Outcome]


class Teller:
    """Tells hooks of the events that releases and claims cause, in batches and in a loop of its own."""

    def __init__(self, hooks: HookRegistry, *, worker_id: str, on_room: Callable[[], None]) -> None:
        """Prepare it; ``run`` is its life.

        Args:
            hooks: Who is told.
            worker_id: The worker's id.
            on_room: Called when it no longer is behind.
        """
        self.hooks = hooks
        self._worker_id = worker_id
        self._on_room = on_room
        self._has_started = False
        self._has_stopped = False
        self._events: list[Observation] = []
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_behind(self) -> bool:
        """Whether so much is to be told that claiming more would only add to it."""
        return len(self._events) >= _BEHIND

    def wants(self, statement: str) -> bool:
        """Whether anybody is to be told what that statement does."""
        hooks = self.hooks
        if statement == "hand_back":
            return hooks.wants(JobInterrupted) or hooks.wants(LocalQueueReturnJobs)
        if statement == "release_failed":
            return hooks.wants(JobFail) or hooks.wants(JobPermanentlyFail) or hooks.wants(JobInterrupted)
        return hooks.wants(JobComplete)

    def tell(self, events: Iterable[Observation]) -> None:
        """Have hooks told of events, soon."""
        self._events += events
        if self._events:
            self._idle.clear()
            self._news.set()

    def released(self, group: Sequence[Settled], ids: Iterable[int]) -> None:
        """Tell of jobs that were completed or handed back: those of the group with these ids."""
        written, unbegun = set(ids), 0
        events: list[Observation] = []
        for job, outcome in group:
            if job.id not in written:
                continue
            if outcome is None:
                took = timedelta(seconds=job.seconds)
                events.append(JobComplete(job=job.job(), worker_id=self._worker_id, duration=took))
            elif isinstance(outcome, HandBack) and outcome.interrupted:
                events.append(self._interrupted(job))
            else:
                unbegun += 1
        if unbegun:
            events.append(LocalQueueReturnJobs(worker_id=self._worker_id, jobs_count=unbegun))
        self.tell(events)

    def failed(self, group: Sequence[Settled], verdicts: Mapping[int, Any]) -> None:
        """Tell of failed jobs, by the rows that say what became of them."""
        events: list[Observation] = []
        for job, outcome in group:
            row = verdicts.get(job.id)
            if row is None or not isinstance(outcome, Failure):
                continue
            if outcome.interrupted:
                events.append(self._interrupted(job))
            if row["verdict"] != "retry" or not outcome.interrupted:
                events.append(self._failed(job, outcome, row))
        self.tell(events)

    def _interrupted(self, job: Claimed) -> JobInterrupted:
        reason = FailureReason.SHUTDOWN_ABORTED
        return JobInterrupted(job=job.job(), worker_id=self._worker_id, reason=reason)

    def _failed(self, job: Claimed, failure: Failure, row: Any) -> JobFail | JobPermanentlyFail:
        said: dict[str, Any] = {
            "job": job.job(),
            "worker_id": self._worker_id,
            "error": failure.message,
            "detail": failure.detail,
            "duration": timedelta(seconds=job.seconds),
        }
        if row["verdict"] == "retry":
            wait = timedelta(seconds=max(0.0, row["wait_seconds"]))
            return JobFail(will_retry=True, retry_in=wait, **said)
        return JobPermanentlyFail(reason=row["verdict"], dlq_id=row["dlq_id"], **said)

    # -- a worker's life ------------------------------------------------------------------------

    async def started(self, pool: Pool) -> None:
        """Tell that the worker is about to claim, and wait for the hooks."""
        self._has_started = True
        await self.hooks.observe(WorkerStart(pool=pool, worker_id=self._worker_id))

    async def stopped(self, pool: Pool, reason: ShutdownReason, until: float) -> None:
        """Tell that the worker has stopped, if it was told that it starts, and that was not told before.

        Args:
            pool: Connections.
            reason: Why it stopped.
            until: The monotonic time until which hooks may take; they have half a second in any case.
        """
        if self._has_stopped or not self._has_started:
            return
        self._has_stopped = True
        event = WorkerShutdown(pool=pool, worker_id=self._worker_id, reason=reason)
        try:
            async with asyncio.timeout(max(_LAST_WORD, until - time.monotonic())):
                await self.hooks.observe(event)
        except TimeoutError:
            logger.warning("hooks of worker_shutdown took longer than the stop may take, and were cancelled")

    # -- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell hooks whenever there is something to tell; until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._events:
                was_behind = self.is_behind
                events, self._events = self._events[:_TOGETHER], self._events[_TOGETHER:]
                await self._tell_together(events)
                if was_behind and not self.is_behind:
                    self._on_room()
            self._idle.set()

    async def _tell_together(self, events: Sequence[Observation]) -> None:
        wanted = [event for event in events if self.hooks.wants(type(event))]
        started = [started for event in wanted for started in self.hooks.start(event)]
        if started:
            await asyncio.gather(*started)
        else:
            await asyncio.sleep(0)

    async def finish(self, until: float) -> None:
        """Wait until everything is told.

        Args:
            until: The monotonic time at which to give up.
        """
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._idle.wait()
        except TimeoutError:
            logger.warning(
                "hooks are too slow for the stop: up to %d events are not told", len(self._events) + _TOGETHER
            )
