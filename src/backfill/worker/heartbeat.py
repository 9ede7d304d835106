"""The heartbeat: a thread with an event loop and a connection of its own that says "alive" and watches the lease.

It is a thread so that a handler which hogs the worker's loop makes the worker slow, not dead. (C code that holds Python's
global lock stops this thread too; past the lease the worker is then taken for dead, which is a documented limit.)

A worker's row, as this thread sees it:

* **none yet**: the first statement makes it. Nothing is claimed before, since a claim needs the row.
* **alive**: a beat each sixth of the lease moves `heartbeat_at` and brings along what runs. If the connection is lost or a beat
  takes longer than a third of the lease, there is a new connection; nothing else happens until the deadline.
* **lapsed**: the deadline passed without an acknowledged beat, or a beat found the row dead or gone. The worker is told once:
  it claims nothing, hands back what has not begun, and cancels what runs. If this process is the worker's own (the command line),
  it is ended a second before the lease is: what still runs then cannot be stopped in another way. In an application such
  handlers run on; their outcome and what they do through their context is refused.
* **alive again**: the next acknowledged beat or registration begins a new lease, under the same id. Claims of before may be gone;
  their tokens are never used again, so there is nothing to confuse them with.

With each beat it also asks for workers that are late; see ``sweep``.
"""

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from backfill.db import DRIVER_ERRORS, Session, is_connection_error, takes_no_writes, translate
from backfill.errors import BackfillError
from backfill.sql import text
from backfill.worker.lease import Lease, boot_time
from backfill.worker.program import kill_programs
from backfill.worker.vitals import Late, Listeners, Vitals

if TYPE_CHECKING:
    from backfill.worker.claimed import Claimed

logger = logging.getLogger(__name__)

HEARTBEAT: Final = "heartbeat"  # the limit's name
_TICK: Final = 0.25  # seconds between looks at the deadline
_PASSING: Final = frozenset({"40", "53", "57", "58"})  # classes of SQLSTATE, as in ``release``
_FIRST_PAUSE: Final = 0.05  # seconds before a new connection
_REFRESH: Final = 60.0  # seconds between refreshes of the locks that are held for longer
_REFRESH_PAGE: Final = 1000
_LAST_WORDS: Final = 0.3  # seconds that the log gets before the process is ended
_MERCY: Final = 0.5  # seconds at least that handlers get to end after their cancellation
_NAG: Final = 30.0  # seconds between complaints about handlers that run on without a claim
_FAREWELL: Final = 2.0  # seconds that taking the row out may take


class Heartbeat:
    """Keeps a worker's row and lease. ``start`` it before the first claim, ``stop`` it after everything else.

    Attributes:
        beats: Acknowledged beats.
        may_exit: Whether the process may be ended when something still runs as the lease ends.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Session]],
        schema: str,
        *,
        lease: Lease,
        row: tuple[Any, ...],
        vitals: Vitals,
        listeners: Listeners,
    ) -> None:
        """Prepare it.

        Args:
            connect: Makes its connection; called in the thread.
            schema: The schema.
            lease: Renewed here.
            row: What the worker's row is to say, from ``worker_row``.
            vitals: Asked from the thread.
            listeners: Whom to tell.
        """
        self.beats = 0
        self.may_exit = False
        self._connect = connect
        self._schema = schema
        self._id: str = row[0]
        self._lease = lease
        self._row = row
        self._vitals = vitals
        self._listeners = listeners
        self._interval = lease.seconds / 6
        self._patience = lease.seconds / 3
        self._state = "alive"
        self._remove = False
        self._stop_wanted = False
        self._registered = False
        self._exit_at: float | None = None
        self._nagged_at = 0.0
        self._steady_since: float | None = None
        self._refreshed_at = boot_time()
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._soon: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._first: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    # -- called in the worker's loop --------------------------------------------------------------

    async def start(self) -> None:
        """Begin, and wait until the worker's row is there.

        Raises:
            DatabaseError: The database refused the row; when it can't be reached, this waits until it can.
            SchemaError: There is no table of workers.
        """
        self._loop = asyncio.get_running_loop()
        first = self._first = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"{self._id}-heartbeat", daemon=True)
        self._thread.start()
        await first

    def hasten(self) -> None:
        """Beat now, since there may be something to learn."""
        self._wake()

    def drain(self) -> None:
        """Have the row say that the worker stops."""
        self._state = "draining"
        self._wake()

    async def stop(self, *, remove: bool) -> None:
        """End.

        Args:
            remove: Whether to take the row out: nothing is held any more. Else others sweep it when the lease has ended.
        """
        if self._thread is None:
            return
        self._remove = remove
        self._stop_wanted = True
        self._wake()
        try:
            async with asyncio.timeout(_FAREWELL + _TICK):
                await self._ended.wait()
        except TimeoutError:  # it waits for a database that does not answer, and ends by itself after that
            logger.warning("the row of worker %s stays: the database does not answer", self._id)
        self._thread = None

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception:
            logger.exception("the heartbeat of worker %s failed in an unforeseen way", self._id)
            self._lapse("its heartbeat failed")
        finally:
            self._tell(self._ended.set)

    async def _live(self) -> None:
        self._soon = asyncio.Event()
        self._own_loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._watch())
        try:
            while not self._stop_wanted:
                try:
                    await self._hold()
                except (*DRIVER_ERRORS, BackfillError) as error:
                    self._failed(error)
                    await self._pause()
                except Exception as error:
                    logger.exception("the heartbeat of worker %s failed in an unforeseen way, will try again", self._id)
                    self._failed(error)
                    await self._pause()
        finally:
            watching.cancel()

    async def _hold(self) -> None:
        """Connect and beat for as long as that goes well."""
        async with asyncio.timeout(self._patience):
            connection = await self._connect()
        try:
            if self._failures:  # what the one before left on the server may hold our row
                async with asyncio.timeout(self._patience):
                    await connection.replace()
            while not self._stop_wanted:
                sent_at = boot_time()
                async with asyncio.timeout(self._patience):
                    await self._beat(connection, sent_at)
                    await self._look_around(connection, sent_at)
                self._failures = 0
                await self._until(sent_at + self._interval)
            if self._remove:
                async with asyncio.timeout(_FAREWELL):
                    await connection.execute(text("remove_worker", self._schema), self._id)
        except BaseException:
            connection.terminate()  # no time for politeness: the lease goes on ending
            raise
        await connection.leave()

    async def _beat(self, connection: Session, sent_at: float) -> None:
        """Say that we live; register first if the row is not there or says otherwise."""
        if self._registered:
            sample = self._vitals.sample()
            row = await connection.fetchrow(
                text("beat", self._schema), self._id, self._state, sample.running, sample.ages, sample.loop_lag
            )
            if row is None:
                self._registered = False
                self._steady_since = None
                self._lapse("the database says that it is dead")
            elif row["cancelled"] or row["unsettled"]:
                cancelled, unsettled = frozenset(row["cancelled"]), row["unsettled"]
                self._tell(lambda: self._listeners.on_cancellations(cancelled, unsettled))
        if not self._registered:
            await connection.execute(
                text("register_worker", self._schema), *self._row, self._state, self._lease.seconds
            )
            self._registered = True
        self._acknowledged(sent_at)

    def _acknowledged(self, sent_at: float) -> None:
        if not self._lease.fence.stands():
            self._lapse("no heartbeat was acknowledged in time")
        self.beats += 1
        if self._steady_since is None or boot_time() - sent_at > self._patience:
            self._steady_since = sent_at
        renewed = self._lease.renew(sent_at)
        self._listeners.on_deadline(self._lease.fence.deadline)
        if renewed:
            self._tell(self._listeners.on_renewed)
        if self._first is not None:
            first, self._first = self._first, None
            self._tell(partial(_settle, first, None))

    async def _look_around(self, connection: Session, now: float) -> None:
        """See which workers are late; refresh the locks of long jobs."""
        rows = await connection.fetch(text("late_workers", self._schema), self._id)
        steady = self._steady_since is not None and now - self._steady_since >= self._lease.seconds / 2
        late = [Late(*row) for row in rows]
        self._tell(lambda: self._listeners.on_late(late, now, steady))
        if now - self._refreshed_at >= _REFRESH:
            self._refreshed_at = now
            await self._refresh(connection)

    async def _refresh(self, connection: Session) -> None:
        old = time.monotonic() - _REFRESH / 2
        jobs = [job for job in self._vitals.held() if job.claimed_at < old]
        for start in range(0, len(jobs), _REFRESH_PAGE):
            page = jobs[start : start + _REFRESH_PAGE]
            queued = [job for job in page if job.queue_id is not None]
            await connection.fetch(
                text("refresh_locks", self._schema),
                [job.queue_id for job in queued],
                [job.token for job in queued],
                [job.id for job in page],
                [job.token for job in page],
            )

    async def _until(self, moment: float) -> None:
        """Wait until then, or until there is something to say at once."""
        if self._soon is None or self._stop_wanted:
            return
        try:
            async with asyncio.timeout(max(0.0, moment - boot_time())):
                await self._soon.wait()
            self._soon.clear()
        except TimeoutError:
            return

    def _failed(self, error: BaseException) -> None:
        self._steady_since = None
        self._failures += 1
        said = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            said = f"no answer within {self._patience:g} s (limit {HEARTBEAT}, a third of the lease)"
        if self._first is not None and not _may_pass(error):
            first, self._first = self._first, None
            failure = translate(error, f"cannot register worker {self._id}")
            self._tell(partial(_settle, first, failure))
            self._stop_wanted = True
            return
        log = logger.warning if self._failures == 1 else logger.debug
        log("the heartbeat of worker %s failed, will try again: %s", self._id, said)

    async def _pause(self) -> None:
        longest = min(1.0, self._interval, _FIRST_PAUSE * 2 ** min(self._failures, 10))
        await self._until(boot_time() + longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads a fleet, no secret

    # -- the lease ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice the deadline, and end the process if it has to be."""
        while True:
            await asyncio.sleep(_TICK)
            if self._registered and not self._lease.fence.stands():
                self._lapse("no heartbeat was acknowledged in time")
            if self._exit_at is not None and boot_time() >= self._exit_at:
                self._part_with(
                    [job for job in self._vitals.running() if not job.fence.stands()],
                )

    def _lapse(self, why: str) -> None:
        """The lease is lost: tell the worker, once."""
        if self._lease.fence.lapsed:
            return
        self._lease.lose()
        self._exit_at = max(self._lease.ends - 1.0, boot_time() + _MERCY)
        logger.error(
            "worker %s has lost its lease (%s): it cancels its jobs and claims no more until it is back", self._id, why
        )
        self._tell(self._listeners.on_lapse)

    def _part_with(self, jobs: Sequence["Claimed"]) -> None:
        """Nothing should run any more; what does cannot be stopped but with the process."""
        if not jobs:
            if self._lease.fence.stands():
                self._exit_at = None
            return
        names = ", ".join(f"{job.id} ({job.handler.identifier})" for job in jobs)
        if self.may_exit:
            message = f"worker {self._id} ends its process: without a lease these jobs may run elsewhere, and still run here: {names}"
            words = threading.Thread(target=_say_last, args=(message,), daemon=True)
            words.start()
            kill_programs()
            words.join(_LAST_WORDS)  # whoever logs may hang
            os._exit(1)
        if boot_time() - self._nagged_at > _NAG:
            self._nagged_at = boot_time()
            logger.error(
                "these jobs of worker %s may run elsewhere by now, and still run here since they can't be cancelled: %s",
                self._id,
                names,
            )

    def _tell(self, what: Callable[[], object]) -> None:
        """Have the worker's loop call that."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(what)

    def _wake(self) -> None:
        """Have the thread do what is to be done, at once."""
        if self._own_loop is not None and self._soon is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self._own_loop.call_soon_threadsafe(self._soon.set)


def _may_pass(error: BaseException) -> bool:
    """Whether trying again may help: no server, one that takes no writes now, one that lacks something, a conflict, a time limit."""
    state = getattr(error, "sqlstate", None) or ""
    return is_connection_error(error) or takes_no_writes(error) or state[:2] in _PASSING or state == "55P03"


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _say_last(message: str) -> None:
    logger.critical("%s", message)
    logging.shutdown()
