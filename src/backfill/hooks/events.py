"""The events: one frozen class each, which is also what handlers are given.

Two kinds. *Observations* tell that something has happened; what their handlers return is ignored. *Decisions* are asked
before something happens; their handlers answer, in the order in which they were registered, and the first answer other than
to go on stands.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Literal

import asyncpg

from backfill.hooks.results import Continue, Fail, FailureReason, FailWithBackoff, Reschedule, ShutdownReason, Skip
from backfill.model import Job, JobSpec

_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")


class Event:
    """The base of all events.

    Attributes:
        name: The class's name in snake_case: handlers can be registered by it too.
        answers: The kinds of answers that its handlers may give; none for observations.
    """

    __slots__ = ()
    name: ClassVar[str]
    answers: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.name = _WORD.sub("_", cls.__name__).lower()


class Observation(Event):
    """The base of events that tell what has happened."""

    __slots__ = ()


class RunDecision(Event):
    """The base of decisions about a run, answered by a ``HookResult``."""

    __slots__ = ()
    answers = (Continue, Skip, Fail)


class ScheduleDecision(Event):
    """The base of decisions about a job that is to be added, answered by a ``JobScheduleResult``."""

    __slots__ = ()
    answers = (Continue, Skip, Fail)


class RecoveryDecision(Event):
    """The base of decisions about an interrupted job, answered by a ``JobRecoveryResult``."""

    __slots__ = ()
    answers = (Continue, Reschedule, FailWithBackoff, Skip)


# -- a worker's life --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInit(Observation):
    """A runner has been built: it is connected, and the schema is there.

    Attributes:
        pool: Connections for handlers and hooks.
        schema: The schema's name, unquoted.
        concurrency: How many jobs it runs at once.
    """

    pool: "asyncpg.Pool[asyncpg.Record]"
    schema: str
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStart(Observation):
    """A worker is about to claim its first jobs.

    Attributes:
        pool: Connections for handlers and hooks.
        worker_id: The worker's id, new for each run.
    """

    pool: "asyncpg.Pool[asyncpg.Record]"
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShutdown(Observation):
    """A worker has stopped: nothing of it runs any more, and everything is released.

    Attributes:
        pool: Connections, still open.
        worker_id: The worker's id.
        reason: Why it stopped.
    """

    pool: "asyncpg.Pool[asyncpg.Record]"
    worker_id: str
    reason: ShutdownReason


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecovered(Observation):
    """This worker has looked for dead workers and taken their jobs away from them.

    Attributes:
        worker_id: The worker that looked.
        dead_worker_ids: Those it found dead.
        jobs_recovered: How many jobs it released.
    """

    worker_id: str
    dead_worker_ids: tuple[str, ...]
    jobs_recovered: int


# -- a job's way ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFetch(Observation):
    """A slot has taken a claimed job.

    Attributes:
        job: The job as it was claimed: ``attempts`` counts this run.
        worker_id: The worker.
    """

    job: Job
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeJobRun(RunDecision):
    """A job is about to run.

    ``Skip``: it is not run and is completed all the same (``JobComplete`` with a duration of zero, no ``JobStart``).
    ``Fail``: it is not run and fails, as if its handler had raised ``JobFailed``.

    Attributes:
        job: The job.
        worker_id: The worker.
    """

    job: Job
    worker_id: str

    @property
    def payload(self) -> Any:
        """The payload's value; it can't be changed here.

        Raises:
            MalformedData: Python cannot hold it.
        """
        return self.job.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStart(Observation):
    """A job's handler is about to be called.

    Attributes:
        job: The job.
        worker_id: The worker.
    """

    job: Job
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterJobRun(RunDecision):
    """A job's handler has ended, and nothing is written yet.

    ``Skip``: the job counts as done, even if it failed or was cut short. ``Fail``: it failed, even if it ended well.

    Attributes:
        job: The job.
        worker_id: The worker.
        error: None when it ended well; else the error's type and text.
        detail: None when it ended well; else a JSON object with type, message, traceback and more.
        duration: How long the handler took.
    """

    job: Job
    worker_id: str
    error: str | None
    detail: str | None
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class JobComplete(Observation):
    """A job is done, and its row is gone.

    Attributes:
        job: The job.
        worker_id: The worker.
        duration: How long its handler took; zero when it was skipped before it ran.
    """

    job: Job
    worker_id: str
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFail(Observation):
    """A job has failed and will be tried again; that is written.

    Attributes:
        job: The job.
        worker_id: The worker.
        error: The error's type and text.
        detail: A JSON object with type, message, traceback and more.
        will_retry: True: the last failure is a ``JobPermanentlyFail``.
        retry_in: When it is due again, from now.
        duration: How long its handler took.
    """

    job: Job
    worker_id: str
    error: str
    detail: str
    will_retry: bool
    retry_in: timedelta
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPermanentlyFail(Observation):
    """A job has failed for good; that is written. ``JobFail`` is not sent too.

    Attributes:
        job: The job.
        worker_id: The worker.
        error: The error's type and text.
        detail: A JSON object with type, message, traceback and more.
        reason: ``exhausted``: that was its last attempt; ``permanent``: the error is not worth another; ``superseded``: while
            it ran, its key was added again or removed; ``cancelled``: somebody had it cancelled while it ran;
            ``quarantined``: it killed too many workers.
        dlq_id: Its entry in the dead letter queue; None when it stays in the queue, used up, or was cancelled and is gone.
        duration: How long its handler took.
    """

    job: Job
    worker_id: str
    error: str
    detail: str
    reason: Literal["exhausted", "permanent", "superseded", "cancelled", "quarantined"]
    dlq_id: int | None
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecovery(RecoveryDecision):
    """A run was cut short: what is to become of the job?

    By default it runs again. The cut run does not count as an attempt after a stop; after its worker's death it does, if it had
    begun and was not the last. ``Reschedule``: it runs again at that time. ``FailWithBackoff``: the run counts as failed.
    ``Skip``: nothing is done about it, it stays locked.

    Attributes:
        job: The job.
        worker_id: The worker that asks.
        previous_worker_id: The worker that ran it; the same one at its own shutdown.
        reason: What cut it short.
    """

    job: Job
    worker_id: str
    previous_worker_id: str
    reason: FailureReason


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInterrupted(Observation):
    """A run was cut short, and its job has been released.

    Attributes:
        job: The job.
        worker_id: The worker that released it.
        reason: What cut it short.
    """

    job: Job
    worker_id: str
    reason: FailureReason


# -- adding jobs ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeJobSchedule(ScheduleDecision):
    """A job is about to be added.

    ``Continue(payload)`` changes its payload, for the handlers after this one too. ``Skip`` and ``Fail`` keep it out, and with
    it the whole call: ``JobScheduleSkipped`` or ``JobScheduleFailed`` is raised, and nothing is written.

    Attributes:
        identifier: The task's.
        payload: The payload as a JSON value, a copy of what was given.
        spec: The job's settings, those of its task included.
    """

    identifier: str
    payload: Any
    spec: JobSpec


# -- cron -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CronTick(Observation):
    """A minute has begun, on each worker with cron items; told once for each, but for those that a pause has skipped.

    Attributes:
        timestamp: The minute.
        crontabs: The items, each a ``CronItem``.
    """

    timestamp: datetime
    crontabs: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CronJobScheduled(Observation):
    """This worker has added the job of a run of a cron item; those that other workers add are told there.

    Attributes:
        crontab: The item.
        scheduled_at: The minute of the run, which may be one that was missed before.
    """

    crontab: Any
    scheduled_at: datetime


# -- claiming ahead ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueGetJobsComplete(Observation):
    """A claim has brought jobs.

    Attributes:
        worker_id: The worker.
        jobs_count: How many.
    """

    worker_id: str
    jobs_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueReturnJobs(Observation):
    """Jobs that were claimed and not begun have gone back: they had waited too long, or the worker stops.

    Attributes:
        worker_id: The worker.
        jobs_count: How many.
    """

    worker_id: str
    jobs_count: int


EVENTS: Final[dict[str, type[Event]]] = {
    event.name: event
    for event in (
        WorkerInit,
        WorkerStart,
        WorkerShutdown,
        WorkerRecovered,
        JobFetch,
        BeforeJobRun,
        JobStart,
        AfterJobRun,
        JobComplete,
        JobFail,
        JobPermanentlyFail,
        JobRecovery,
        JobInterrupted,
        BeforeJobSchedule,
        CronTick,
        CronJobScheduled,
        LocalQueueGetJobsComplete,
        LocalQueueReturnJobs,
    )
}
"""All events by name."""

OBSERVATIONS: Final[tuple[type[Observation], ...]] = tuple(
    event for event in EVENTS.values() if issubclass(event, Observation)
)
"""The events that tell what has happened: those that can be subscribed to."""
