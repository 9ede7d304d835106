"""JobSpec: everything about a job but its task and its payload."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from backfill.errors import InvalidJob
from backfill.model.flags import NO_FLAGS, Extras, encode_flags
from backfill.model.priority import Priority
from backfill.model.queue import Queue
from backfill.model.retry import RetryPolicy, checked_policy
from backfill.model.values import (
    MAX_ATTEMPTS,
    MAX_JOB_KEY,
    checked_flags,
    checked_int,
    checked_positive,
    checked_text,
    checked_time,
)

DEFAULT_MAX_ATTEMPTS = 8


class JobKeyMode(StrEnum):
    """What happens when a job with the same key is there already; the values are those of Graphile Worker's SQL.

    On a key whose job is running, the first two add a successor; the third adds nothing.
    """

    REPLACE = "replace"
    """The waiting job is overwritten, its run_at included."""
    PRESERVE_RUN_AT = "preserve_run_at"
    """The waiting job is overwritten but keeps its run_at."""
    UNSAFE_DEDUPE = "unsafe_dedupe"
    """The job that is there stays as it is, even if it is running or failed for good."""


@dataclass(frozen=True, slots=True, init=False)
class JobSpec:
    """When, how urgently, where and how often a job runs; checked when it is made.

    Attributes:
        run_at: When it is due, with a time zone (kept in UTC); None is now, by the database's clock.
        priority: -32768 to 32767, the lower number first.
        queue: A `Queue`, or a serial queue's name, or None for the parallel queue; kept as a `Queue`.
        max_attempts: Runs in all, 1 to 32767. None takes the retry policy's limit, which then stands here; without
            a policy it stays None, which means 8 or what the task says.
        retry_policy: When a failed job runs again; None is the task's policy, else Graphile Worker's back-off.
        job_key: A name of 1 to 512 characters under which only one job can wait.
        job_key_mode: What happens when a job with that key is there already.
        flags: Names that workers can be told to leave alone; none begins with `backfill:`.
        timeout: How long one run may take; None is the task's timeout, else no limit.
        deadline: The moment, with a time zone, after which the job is not to be run; None is never.

    Raises:
        InvalidJob: A value cannot be; the message names the field and the value.
    """

    run_at: datetime | None
    priority: Priority
    queue: Queue
    max_attempts: int | None
    retry_policy: RetryPolicy | None
    job_key: str | None
    job_key_mode: JobKeyMode
    flags: frozenset[str]
    timeout: timedelta | None
    deadline: datetime | None

    def __init__(
        self,
        *,
        run_at: datetime | None = None,
        priority: int = Priority.BULK_DEFAULT,
        queue: Queue | str | None = None,
        max_attempts: int | None = None,
        retry_policy: RetryPolicy | None = None,
        job_key: str | None = None,
        job_key_mode: JobKeyMode | str = JobKeyMode.REPLACE,
        flags: Iterable[str] = frozenset(),
        timeout: timedelta | None = None,
        deadline: datetime | None = None,
    ) -> None:
        put = object.__setattr__  # the dataclass is frozen
        put(self, "run_at", None if run_at is None else checked_time("run_at", run_at))
        put(self, "priority", priority if isinstance(priority, Priority) else Priority(priority))
        put(self, "queue", Queue.PARALLEL if queue is None else Queue.coerce(queue))
        put(self, "retry_policy", None if retry_policy is None else checked_policy(retry_policy))
        if max_attempts is not None:
            checked_int("max_attempts", max_attempts, 1, MAX_ATTEMPTS)
        elif retry_policy is not None:
            max_attempts = retry_policy.max_attempts
        put(self, "max_attempts", max_attempts)
        put(self, "job_key", None if job_key is None else checked_text("job_key", job_key, MAX_JOB_KEY))
        put(self, "job_key_mode", job_key_mode if type(job_key_mode) is JobKeyMode else _checked_mode(job_key_mode))
        put(self, "flags", checked_flags("flags", flags) if flags else NO_FLAGS)
        put(self, "timeout", None if timeout is None else checked_positive("timeout", timeout))
        put(self, "deadline", None if deadline is None else checked_time("deadline", deadline))

    def with_retry_policy(self, policy: RetryPolicy) -> Self:
        """Return a copy with that policy and its limit of attempts."""
        return replace(self, retry_policy=policy, max_attempts=None)

    def with_fast_retries(self) -> Self:
        """Return a copy with `RetryPolicy.fast()`."""
        return self.with_retry_policy(RetryPolicy.fast())

    def with_aggressive_retries(self) -> Self:
        """Return a copy with `RetryPolicy.aggressive()`."""
        return self.with_retry_policy(RetryPolicy.aggressive())

    def with_conservative_retries(self) -> Self:
        """Return a copy with `RetryPolicy.conservative()`."""
        return self.with_retry_policy(RetryPolicy.conservative())

    def effective_retry_policy(self) -> RetryPolicy:
        """Return the policy, or the default one when there is none."""
        return self.retry_policy or RetryPolicy.default()

    def effective_max_attempts(self) -> int:
        """Return the limit of attempts: the spec's own, else the policy's, else 8."""
        return DEFAULT_MAX_ATTEMPTS if self.max_attempts is None else self.max_attempts

    def calculate_retry_time(self, attempt: int, failed_at: datetime) -> datetime | None:
        """Return when the job runs again after a failed attempt, or None when that was its last.

        Parameters:
            attempt: The failed attempt, counted from 0.
            failed_at: When it failed, with a time zone.
        """
        checked_time("failed_at", failed_at)
        if checked_int("attempt", attempt, 0, 2**63 - 1) + 1 >= self.effective_max_attempts():
            return None
        return failed_at + self.effective_retry_policy().backoff(attempt)

    def stored_flags(self) -> list[str] | None:
        """Return the flags to store with the job: the user's and those that carry the extras; None when none."""
        if self.retry_policy is None and self.timeout is None and self.deadline is None:
            return sorted(self.flags) if self.flags else None
        extras = Extras(retry_policy=self.retry_policy, timeout=self.timeout, deadline=self.deadline)
        return encode_flags(self.flags, extras)


def _checked_mode(value: str) -> JobKeyMode:
    try:
        return JobKeyMode(value)
    except ValueError as error:
        modes = ", ".join(repr(str(mode)) for mode in JobKeyMode)
        raise InvalidJob(f"job_key_mode must be one of {modes}, not {value!r}") from error
