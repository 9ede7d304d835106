"""What interceptors answer, and why a worker or a run ended.

An interceptor that returns None has nothing against it: the next one is asked, and in the end everything goes its usual way.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from backfill.errors import InvalidJob
from backfill.model import checked_int
from backfill.model.values import MAX_ATTEMPTS, checked_time


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on: ask the next handler.

    Attributes:
        payload: For ``BeforeJobSchedule``: what the job's payload is to be instead; left out, it stays as it is.
    """

    payload: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave it: what that means is said at each event. No further handler is asked."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Refuse it: the job fails, or is not added. No further handler is asked.

    Attributes:
        message: Why, for ``last_error``, the log, and whoever adds the job.
        cause: The exception of a handler that raised instead of answering.
    """

    message: str
    cause: BaseException | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.message, str):
            raise InvalidJob(f"Fail takes a message, not {self.message!r:.100} ({type(self.message).__name__})")


@dataclass(frozen=True, slots=True)
class Reschedule:
    """For ``JobRecovery``: run the interrupted job again at that time.

    Attributes:
        run_at: When, with a time zone (kept in UTC).
        attempts: How many of its attempts then count as used; None: as many as before the run that was interrupted.

    Raises:
        InvalidJob: The time has no time zone, or the number is out of range.
    """

    run_at: datetime
    attempts: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_at", checked_time("run_at", self.run_at))
        if self.attempts is not None:
            checked_int("attempts", self.attempts, 0, MAX_ATTEMPTS)


@dataclass(frozen=True, slots=True)
class FailWithBackoff:
    """For ``JobRecovery``: count the interrupted run as a failed attempt; the retry policy says when the next one is."""


HookResult: TypeAlias = Continue | Skip | Fail | None
"""What handlers of ``BeforeJobRun`` and ``AfterJobRun`` return."""

JobScheduleResult: TypeAlias = Continue | Skip | Fail | None
"""What handlers of ``BeforeJobSchedule`` return."""

JobRecoveryResult: TypeAlias = Continue | Reschedule | FailWithBackoff | Skip | None
"""What handlers of ``JobRecovery`` return; ``Continue`` and None are the default treatment."""


class ShutdownReason(StrEnum):
    """Why a worker stopped."""

    GRACEFUL = "graceful"
    """It was told to, by its event or a cancellation, or it had run all that was due."""
    SIGNAL = "signal"
    """A signal told its process to end."""
    ERROR = "error"
    """One of its own parts failed; it stopped in order, and raised."""


class FailureReason(StrEnum):
    """Why a run was cut short."""

    SHUTDOWN_ABORTED = "shutdown_aborted"
    """Its worker stopped, and its handler did not end in time."""
    WORKER_CRASHED = "worker_crashed"
    """Its worker died, or was not heard of for longer than its lease."""
