"""A run with hooks around it.

The order: ``JobFetch``, ``BeforeJobRun``, ``JobStart``, the handler, ``AfterJobRun``, and for a run that a stop cut short
``JobRecovery``. The rest is told when it is written (``teller``).

All hooks of one run, and its handler, share a copy of the context variables: what ``BeforeJobRun`` sets, the handler sees, and
nobody after it. A stop cancels hooks as it cancels handlers. Those that are asked about a run which was cut short have a second
to answer; then it goes its usual way.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final, TypeVar

from backfill.errors import JobFailed, WorkerError
from backfill.hooks import (
    AfterJobRun,
    BeforeJobRun,
    Fail,
    FailureReason,
    FailWithBackoff,
    HookRegistry,
    JobFetch,
    JobRecovery,
    JobStart,
    Reschedule,
    Skip,
)
from backfill.model import Job
from backfill.worker.claimed import Claimed, Failure, HandBack, Leave, Outcome

logger = logging.getLogger(__name__)

_SECOND: Final = 1.0  # for hooks that are asked during a stop
_CUT_SHORT: Final = "the worker stopped before the job had ended"
_NOT_BEGUN: Final = HandBack()

A = TypeVar("A")


class HookedRuns:
    """Runs jobs for a slot with the hooks around them."""

    def __init__(
        self,
        hooks: HookRegistry,
        worker_id: str,
        *,
        execute: Callable[[Claimed], Awaitable[Outcome]],
        failure: Callable[[Claimed, BaseException], Failure],
        is_cancelled: Callable[[], bool],
        after_cancel: Callable[[Claimed, Outcome], Awaitable[Outcome]],
    ) -> None:
        """Prepare it.

        Args:
            hooks: Who is told and asked.
            worker_id: The worker's id.
            execute: Runs the handler.
            failure: What an error means for a job.
            is_cancelled: Whether the slot has been cancelled.
            after_cancel: Undoes that, and says what it makes of an outcome.
        """
        self._hooks = hooks
        self._worker_id = worker_id
        self._execute = execute
        self._failure = failure
        self._is_cancelled = is_cancelled
        self._after_cancel = after_cancel

    async def run(self, claimed: Claimed) -> Outcome:
        """Run a job; how that ended."""
        job, claimed.seconds = claimed.job(), 0.0
        ended, outcome = await self._before(claimed, job)
        if not ended:
            began = time.monotonic()
            outcome = await self._execute(claimed)
            claimed.seconds = time.monotonic() - began
            if self._is_cancelled():
                outcome = await self._after_cancel(claimed, outcome)
            if not isinstance(outcome, HandBack) or outcome.interrupted:  # else the job is not ours any more
                outcome = await self._judge(claimed, job, outcome)
        if isinstance(outcome, HandBack) and outcome.interrupted:
            outcome = await self._recover(claimed, job, outcome)
        if self._is_cancelled():  # by a stop that came while hooks were asked; what they were asked about had ended
            await self._after_cancel(claimed, outcome)
        return outcome

    async def _before(self, claimed: Claimed, job: Job) -> tuple[bool, Outcome]:
        """Tell and ask before the handler is called: whether the run has ended so, and how."""
        hooks, worker_id = self._hooks, self._worker_id
        answer: Skip | Fail | None = None
        outcome: Outcome = None
        try:
            await hooks.observe(JobFetch(job=job, worker_id=worker_id))
            answer = await hooks.ask_about_run(BeforeJobRun(job=job, worker_id=worker_id))
            if answer is None and not self._is_cancelled():
                await hooks.observe(JobStart(job=job, worker_id=worker_id))
        except asyncio.CancelledError as error:
            outcome = self._failure(claimed, error)
        if self._is_cancelled():
            return True, await self._after_cancel(claimed, outcome or _NOT_BEGUN)
        if isinstance(answer, Fail):
            outcome = self._refused(claimed, answer)
        return isinstance(answer, Skip) or outcome is not None, outcome

    async def _judge(self, claimed: Claimed, job: Job, outcome: Outcome) -> Outcome:
        """Ask about a run that has ended and is not written."""
        failed = outcome if isinstance(outcome, Failure) else None
        cut_short = isinstance(outcome, HandBack)
        event = AfterJobRun(
            job=job,
            worker_id=self._worker_id,
            error=failed.message if failed is not None else _CUT_SHORT if cut_short else None,
            detail=failed.detail if failed is not None else None,
            duration=timedelta(seconds=claimed.seconds),
        )
        answer = await self._in_time(self._hooks.ask_about_run(event), claimed, limit=_SECOND if cut_short else None)
        if isinstance(answer, Skip):
            return None
        return self._refused(claimed, answer) if isinstance(answer, Fail) else outcome

    async def _recover(self, claimed: Claimed, job: Job, outcome: HandBack) -> Outcome:
        """Ask what is to become of a job that a stop has cut short."""
        event = JobRecovery(
            job=job,
            worker_id=self._worker_id,
            previous_worker_id=self._worker_id,
            reason=FailureReason.SHUTDOWN_ABORTED,
        )
        answer = await self._in_time(self._hooks.ask_about_recovery(event), claimed, limit=_SECOND)
        match answer:
            case Reschedule():
                return replace(outcome, run_at=answer.run_at, attempts=answer.attempts)
            case FailWithBackoff():
                return replace(self._failure(claimed, JobFailed(_CUT_SHORT)), interrupted=True)
            case Skip():
                return Leave()
            case _:
                return outcome

    async def _in_time(self, asking: Awaitable[A], claimed: Claimed, *, limit: float | None) -> A | None:
        """What hooks answer; None if it takes too long, or the slot is cancelled."""
        try:
            async with asyncio.timeout(limit):
                return await asking
        except TimeoutError:
            logger.warning("hooks of job %d did not answer within %g s of a stop: not heeded", claimed.id, limit)
        except asyncio.CancelledError:
            if not self._is_cancelled():
                raise
        return None

    def _refused(self, claimed: Claimed, answer: Fail) -> Failure:
        """A run that a hook says has failed."""
        error = JobFailed(answer.message)
        if answer.cause is not None:
            error.__cause__ = answer.cause
            if isinstance(answer.cause, WorkerError):  # it was raised to say whether another try helps
                return replace(self._failure(claimed, error), retryable=answer.cause.is_retryable)
        return self._failure(claimed, error)
