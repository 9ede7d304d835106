"""How a worker stops: in phases, within the time that it is given.

1. Nothing more is claimed, and everything that has not begun goes back.
2. Running handlers may finish.
3. In the last seconds they are cancelled, and their jobs go back, the attempt not counted. What can't be cancelled is waited
   for, or handed back in the last statement by a process that exits right after.
4. Every outcome is written, if the database lets us. Last of all the heartbeat stops, and the worker's row goes; if something is
   still held, the row stays, and others take over when the lease has ended.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from backfill.db import DRIVER_ERRORS
from backfill.errors import BackfillError
from backfill.worker.claimed import HandBack
from backfill.worker.slot import RETURN_DELAY

if TYPE_CHECKING:
    from backfill.worker.worker import Worker

logger = logging.getLogger(__name__)

_LAST_PHASE: Final = 5.0  # seconds of a stop that are for handlers which have to be cancelled
_CLAIM_ENDS: Final = 2.0  # seconds that a claim under way is given at a stop
_NAG: Final = 30.0  # seconds between warnings about handlers that can't be cancelled


class Shutdown:
    """The stop of one worker."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

    async def to_the_end(self, *, abandon: bool) -> int:
        """Stop, also when whoever waits for it is cancelled meanwhile; that hurries it, and is raised at the end."""
        worker = self._worker
        worker.claimer.stopping = True  # at once: slots that were cancelled together with this look at it
        if worker.cron is not None:
            worker.cron.stop()
        cancelled: asyncio.CancelledError | None = None
        stopping = asyncio.create_task(self._stop(abandon=abandon), name="stop")
        while True:
            try:
                abandoned = await asyncio.shield(stopping)
                break
            except asyncio.CancelledError as error:
                cancelled = error
                worker.hurry.set()
                if stopping.done():  # everything was cancelled, as asyncio.run does at its end
                    stopping = asyncio.create_task(self._stop(abandon=False), name="stop")
        if cancelled is not None:
            raise cancelled
        return abandoned

    async def _stop(self, *, abandon: bool) -> int:
        worker = self._worker
        total = worker.config.shutdown_timeout.total_seconds()
        deadline = time.monotonic() + total
        worker.heartbeat.drain()
        worker.claimer.stopping = True
        worker.claimer.wake()
        await self._end_claiming(min(_CLAIM_ENDS, total / 4))
        for lane in worker.lanes:
            for job in lane.take_all():
                worker.releaser.settle(job, HandBack())
        await self._end_slots(deadline - min(_LAST_PHASE, total / 2))
        if worker.hurry.is_set():
            deadline = min(deadline, time.monotonic() + _LAST_PHASE)
        for slot in worker.slots:
            slot.cancel("stop")
        await self._slots_done(deadline - min(1.0, total / 4))
        stuck = [slot for slot in worker.slots if slot.current is not None]
        if stuck and abandon:
            for slot in stuck:
                if slot.current is not None:
                    worker.releaser.settle(slot.current, HandBack(RETURN_DELAY, interrupted=True))
        elif stuck:
            await self._wait_for_stuck()
            stuck = []
            deadline = time.monotonic() + total
        await self._all_released(deadline)
        await worker.teller.finish(deadline)
        await worker.close(deadline, wait_for_threads=not stuck)
        return len(stuck)

    async def _end_claiming(self, patience: float) -> None:
        """Wait for the claim under way, if there is one; what it claimed although we never heard is handed back."""
        worker = self._worker
        if worker.claiming is None:
            return
        await asyncio.wait([worker.claiming], timeout=patience)
        if not worker.claiming.done():
            worker.claiming.cancel()
            await asyncio.wait([worker.claiming])
        if worker.claimer.in_doubt:
            try:
                async with asyncio.timeout(patience):
                    await worker.reconcile()
            except (*DRIVER_ERRORS, BackfillError) as error:
                logger.warning(
                    "jobs of the last claim, whose reply was lost, may stay locked by %s: %s",
                    worker.id,
                    str(error) or type(error).__name__,
                )

    async def _end_slots(self, until: float) -> None:
        """Let running handlers finish, until then or until somebody is in a hurry."""
        worker = self._worker
        for slot, task in zip(worker.slots, worker.slot_tasks, strict=True):
            slot.stopping = True
            if slot.current is None:
                task.cancel()
            elif task.done():  # it ended in an unforeseen way
                worker.releaser.settle(slot.current, HandBack(RETURN_DELAY, interrupted=True))
                slot.current = None
        hurry = asyncio.create_task(worker.hurry.wait())
        running = {task for task in worker.slot_tasks if not task.done()}
        while running and not hurry.done() and time.monotonic() < until:
            done, _ = await asyncio.wait(
                [*running, hurry], timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            running -= done
        hurry.cancel()

    async def _slots_done(self, until: float) -> None:
        worker = self._worker
        running = [task for task in worker.slot_tasks if not task.done()]
        if running:
            await asyncio.wait(running, timeout=max(0.0, until - time.monotonic()))

    async def _wait_for_stuck(self) -> None:
        worker = self._worker
        while any(not task.done() for task in worker.slot_tasks):
            names = [f"{slot.current.id} ({slot.current.handler.identifier})" for slot in worker.slots if slot.current]
            logger.warning("stopping, but these jobs can't be cancelled and still run: %s", ", ".join(names))
            await self._slots_done(time.monotonic() + _NAG)

    async def _all_released(self, until: float) -> None:
        """Wait until every outcome is written, if the database lets us in time."""
        worker = self._worker
        if (
            worker.releasing is not None and worker.releasing.done()
        ):  # cancelled with everything else, as asyncio.run does
            worker.releasing = asyncio.create_task(worker.releaser.run(), name="release")
            worker.loops.append(worker.releasing)
        while worker.releaser.held and time.monotonic() < until:
            worker.released.clear()
            waiting = asyncio.create_task(worker.released.wait())
            await asyncio.wait([waiting], timeout=max(0.0, until - time.monotonic()))
            waiting.cancel()
        if worker.releaser.held:
            logger.error(
                "%d jobs could not be released before the end of the stop; they stay locked by %s",
                len(worker.releaser.held),
                worker.id,
            )
