"""A slot: takes one claimed job after the other and runs its handler to the end.

The handler is awaited inline, in the slot's own asyncio task: no task is made per job. What keeps jobs apart is a copy of
the context variables for each. A plain function runs in a thread, and the slot waits for it.

How a run ends, and what becomes of it:

* returned: completed.
* its deadline had passed: the handler is not called; failed, and not worth another try.
* raised: failed; `classify` says whether it is worth another try.
* some items of a batch failed: failed, and the payload becomes those items; see ``batch``.
* time-out: the handler is cancelled. When it has ended it counts as failed, and as worth another try. A handler that
  swallows the cancellation, or a thread, can't be made to end: the slot waits for it and the job stays claimed, since a
  job that still runs must not start elsewhere. A process is killed.
* cancelled by a stop of the worker: handed back, the attempt not counted. If it ended well all the same, completed.
* cancelled because somebody asked for it: failed, and the release ends the job as that one said (see ``cancel``).
* cancelled because its claim was lost: handed back, which meets no row that still carries the claim.
* cancelled by somebody else: handed back if the worker is about to stop (the loop ends); else the handler did it to itself,
  and it failed.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from backfill.errors import WorkerError
from backfill.model import graphile_delay
from backfill.worker.batch import ItemsFailedError, has_no_items, settle_items
from backfill.worker.claimed import Claimed, Failure, HandBack, Outcome
from backfill.worker.classify import describe, detail, is_retryable
from backfill.worker.context import WorkerContext
from backfill.worker.hooked import HookedRuns
from backfill.worker.processes import FailedInProcessError, Processes
from backfill.worker.wire import Run

if TYPE_CHECKING:
    from backfill.client import BackfillClient
    from backfill.worker.lane import Lane

logger = logging.getLogger(__name__)

RETURN_DELAY: Final = 1.0  # seconds before a job that a stop cut short runs again: its next worker may be starting
_NOT_BEGUN: Final = object()
_Reason = Literal["stop", "lost", "cancelled"]


class JobTimeoutError(WorkerError):
    """The handler took longer than its time limit; retryable."""

    is_retryable = True


class DeadlinePassedError(WorkerError):
    """The job's deadline had passed before its handler was called; not retryable."""

    is_retryable = False


class JobCancelledError(WorkerError):
    """The job was cancelled because somebody asked for it; not retryable."""

    is_retryable = False


class Slot:
    """One of a lane's slots.

    Attributes:
        current: The job that runs now.
        started_at: Monotonic seconds when it began.
    """

    def __init__(
        self,
        lane: "Lane",
        *,
        client: "BackfillClient",
        worker_id: str,
        threads: Executor,
        processes: Processes,
        settle: Callable[[Claimed, Outcome], None],
        wake: Callable[[], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        """Prepare it; ``run`` is its life.

        Args:
            lane: Where its jobs come from.
            client: For the contexts of handlers.
            worker_id: The worker's id.
            threads: Where plain functions run.
            processes: Where tasks with ``executor="process"`` run.
            settle: Takes a job and the outcome of its run.
            wake: Called when the lane may want another claim.
            is_stopping: Whether the worker stops.
        """
        self.current: Claimed | None = None
        self.started_at = 0.0
        self.stopping = False
        self._lane = lane
        self._client = client
        self._worker_id = worker_id
        self._threads = threads
        self._processes = processes
        self._settle = settle
        self._wake = wake
        self._is_stopping = is_stopping
        self._hooks = client.hooks
        self._retries_all = not client.hooks.switches.permanent_failure
        self._hooked = HookedRuns(
            client.hooks,
            worker_id,
            execute=self._execute,
            failure=self._failure,
            is_cancelled=self._is_cancelled,
            after_cancel=self._after_cancel,
        )
        self._cancelled_for: _Reason | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin, in a task of its own."""
        self._task = asyncio.create_task(self._run(), name=f"backfill-slot-{self._lane.config.name}")
        return self._task

    def cancel(self, reason: _Reason) -> None:
        """Cancel the handler that runs now, if one does.

        Args:
            reason: ``stop``: the worker ends; ``lost``: the claim is no longer ours; ``cancelled``: somebody asked for it.
        """
        if self.current is not None and self._task is not None:
            self.current.cancel_requested = True
            self._cancelled_for = reason
            self._task.cancel(f"backfill: {reason}")

    async def _run(self) -> None:
        lane = self._lane
        while not self.stopping:
            started = time.monotonic()
            while lane.turn_is_over(started):
                await asyncio.sleep(0)
                started = time.monotonic()
            job = lane.take()
            if lane.hungry and lane.buffered <= lane.low_mark:
                self._wake()
            if job is None:
                await lane.wait()
                continue
            if not job.fence.stands():  # the process was frozen, or the worker has lost its lease
                self._settle(job, HandBack())
                continue
            self.current, self.started_at = job, started
            if self._hooks.around_runs:
                outcome = await _InContext(self._hooked.run(job))
                took = time.monotonic() - started
            else:
                outcome = await self._execute(job)
                if self._task is not None and (self._cancelled_for or self._task.cancelling()):
                    outcome = await self._after_cancel(job, outcome)
                took = job.seconds = time.monotonic() - started
            self.current = None
            lane.ran(took)
            self._settle(job, outcome)

    def _is_cancelled(self) -> bool:
        return self._cancelled_for is not None or (self._task is not None and self._task.cancelling() > 0)

    async def _after_cancel(self, job: Claimed, outcome: Outcome) -> Outcome:
        """What a run's outcome is whose slot was cancelled meanwhile; the slot is then as if it never was."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # where a cancellation that came too late is delivered
        while self._task is not None and self._task.cancelling():
            self._task.uncancel()
        reason, self._cancelled_for = self._cancelled_for, None
        if outcome is None or (reason is None and not self._is_stopping()):
            return outcome
        if isinstance(outcome, Failure) and outcome.payload is not None:
            return outcome  # it ended all the same, and which of its items are done is known
        if reason == "cancelled":
            return self._failure(job, JobCancelledError("the job was cancelled while running"))
        if reason == "lost":
            logger.warning("job %d (%s) was cancelled: its claim had been taken away", job.id, job.handler.identifier)
            return HandBack(RETURN_DELAY)
        return HandBack(RETURN_DELAY, interrupted=True)

    async def _execute(self, job: Claimed) -> Outcome:
        handler = job.handler
        if handler.is_simple and job.row[4] is None and handler.decode is not None:
            try:
                rest = _begun(handler.function(handler.decode(job.row[8])))
                if rest is not None:
                    await rest
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - as below
                return self._failure(job, error)
            return None
        timeout = handler.timeout
        if job.row[4] is not None and job.extras.timeout is not None:
            timeout = job.extras.timeout.total_seconds()
        try:
            if job.row[4] is not None:
                _check_deadline(job)
            run = self._begin(job)
            if timeout is None:
                await run
            else:
                await _limited(run, timeout)
        except (KeyboardInterrupt, GeneratorExit):  # meant for the process, and for this coroutine
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it fails this job alone
            return self._failure(job, error)
        return None

    def _begin(self, job: Claimed) -> Any:
        """What is to be awaited for the run of a job."""
        handler = job.handler
        if handler.is_batch and has_no_items(job.row[8]):
            return _nothing()
        if handler.in_process is not None:
            return self._processes.run(Run(*handler.in_process, job.job(), self._worker_id))
        arguments = handler.arguments(job.row[8], lambda: WorkerContext(job, self._client, self._worker_id))
        if handler.in_thread:
            run: Any = self._in_thread(job, handler.function, arguments)
            return settle_items(job.row[8], run) if handler.is_batch else run
        run = handler.function(*arguments)
        return _InContext(settle_items(job.row[8], run) if handler.is_batch else run)

    def _failure(self, job: Claimed, error: BaseException) -> Failure:
        attempt = job.attempt
        policy = job.extras.retry_policy or job.handler.options.retry_policy
        delay = graphile_delay(attempt) if policy is None else policy.backoff(attempt - 1).total_seconds()
        if isinstance(error, FailedInProcessError):
            return Failure(error.message, error.detail, error.retryable or self._retries_all, delay, error.payload)
        more = {"attempt": attempt, "max_attempts": job.row["max_attempts"], "worker_id": self._worker_id}
        left = error.payload if isinstance(error, ItemsFailedError) else None
        retryable = is_retryable(error) or (self._retries_all and not isinstance(error, DeadlinePassedError))
        return Failure(describe(error), detail(error, **more), retryable, delay, left)

    async def _in_thread(self, job: Claimed, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Run a plain function in a thread and wait for its end, however often this is cancelled meanwhile."""
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._threads, context.run, _call, function, arguments)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError as error:
                if not future.done():
                    cancelled = error
                    job.cancel_requested = True
                    logger.warning(
                        "job %d (%s) should end but runs in a thread, which can't be stopped: waiting for it",
                        job.id,
                        job.handler.identifier,
                    )
            except BaseException:  # noqa: BLE001 - raised again below, by result()
                break
        result = future.result()
        if cancelled is not None and self._cancelled_for is None:
            raise cancelled
        return result


class _InContext:
    """Awaits a coroutine in a copy of the context variables, without a task of its own.

    Args:
        coroutine: What is awaited.
        context: The copy; None makes one.
        waits_for: What it waits for, if it has been begun in that copy.
    """

    __slots__ = ("_context", "_coroutine", "_waits_for")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context | None = None,
        waits_for: Any = _NOT_BEGUN,
    ) -> None:
        self._coroutine = coroutine
        self._context = context
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        run = (self._context or contextvars.copy_context()).run
        step: Callable[..., Any] = self._coroutine.send
        value: Any = None
        waits_for = self._waits_for
        while True:
            if waits_for is _NOT_BEGUN:
                try:
                    waits_for = run(step, value)
                except StopIteration as end:
                    return end.value
                except GeneratorExit as error:
                    if value is error:  # this coroutine is being closed
                        raise
                    raise RuntimeError("the handler raised GeneratorExit") from error
            try:
                value = yield waits_for
                step = self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - passed on into the coroutine
                step, value = self._coroutine.throw, error
            waits_for = _NOT_BEGUN


def _begun(coroutine: Coroutine[Any, Any, Any]) -> _InContext | None:
    """Run a coroutine up to where it waits for something, in a copy of the context variables: what is left to be awaited.

    None: it has ended. Handlers that wait for nothing come off cheaper so.
    """
    context = contextvars.copy_context()
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration:
        return None
    except GeneratorExit as error:
        raise RuntimeError("the handler raised GeneratorExit") from error
    return _InContext(coroutine, context, waits_for)


async def _nothing() -> None:
    """The run of a batch without items."""


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except (StopIteration, GeneratorExit) as error:  # which mean something else to whoever waits for the thread
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


def _check_deadline(job: Claimed) -> None:
    """Raise DeadlinePassedError if it is too late to begin the job, by the database's clock at the claim and our own since."""
    deadline = job.extras.deadline
    if deadline is None:
        return
    now = job.locked_at + timedelta(seconds=time.monotonic() - job.claimed_at)
    if now > deadline:
        raise DeadlinePassedError(f"the job's deadline, {deadline.isoformat()}, passed before it could run")


async def _limited(run: Any, seconds: float) -> None:
    """Await it, and raise JobTimeoutError if it took longer, even if it then ended well."""
    try:
        async with asyncio.timeout(seconds) as limit:
            await run
    except TimeoutError as error:
        if limit.expired():
            raise _too_long(seconds) from error
        raise
    if limit.expired():
        raise _too_long(seconds)


def _too_long(seconds: float) -> JobTimeoutError:
    return JobTimeoutError(f"the job took longer than its time limit of {seconds:g} s")
