"""Job: one job as the database has it."""

from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

import msgspec

from backfill.model.flags import NO_EXTRAS, NO_FLAGS, Extras
from backfill.model.payload import decode_payload
from backfill.model.queue import Queue


class JobState(StrEnum):
    """What a job is doing; the same words everywhere."""

    SCHEDULED = "scheduled"
    """It waits for its run_at and has not run yet."""
    READY = "ready"
    """It is due and waits for a worker."""
    RUNNING = "running"
    """A worker holds it."""
    FAILED = "failed"
    """It failed and waits to be tried again."""
    DEAD = "dead"
    """Its attempts are used up; nothing runs it again by itself."""


class Job(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One job as it was when it was read; changing the job is the client's business.

    Attributes:
        id: The job's number.
        task_identifier: The name of the task that runs it.
        payload_text: The payload's JSON as the database has it; `payload` is its value.
        priority: -32768 to 32767, the lower number first.
        run_at: When it is due.
        attempts: How many runs have begun.
        max_attempts: How many runs it may have.
        created_at: When it was added.
        updated_at: When its row last changed.
        queue_name: The serial queue it belongs to; None is the parallel queue.
        last_error: The text of its last failure.
        key: The job key.
        revision: How often it was added again under its key.
        locked_at: Since when a worker holds it; None when none does.
        locked_by: Which worker's claim holds it.
        flags: The user's own flags.
        extras: What backfill keeps with the job besides.
        state: What it was doing; None where it was not asked, as in a claim.
    """

    id: int
    task_identifier: str
    payload_text: str
    priority: int
    run_at: datetime
    attempts: int
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    queue_name: str | None = None
    last_error: str | None = None
    key: str | None = None
    revision: int = 0
    locked_at: datetime | None = None
    locked_by: str | None = None
    flags: frozenset[str] = NO_FLAGS
    extras: Extras = NO_EXTRAS
    state: JobState | None = None

    @cached_property
    def payload(self) -> Any:
        """The payload's value, read when it is first asked for.

        Raises:
            MalformedData: Python cannot hold it, such as a number of more than 4,300 digits.
        """
        return decode_payload(self.payload_text)

    @property
    def queue(self) -> Queue:
        """The queue it waits in."""
        return Queue(self.queue_name or None)

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure of the run that has begun would be final."""
        return self.attempts >= self.max_attempts
