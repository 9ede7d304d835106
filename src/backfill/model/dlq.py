"""The dead letter queue's values."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from backfill.errors import InvalidJob
from backfill.model.flags import NO_EXTRAS, NO_FLAGS, Extras
from backfill.model.payload import decode_payload
from backfill.model.queue import Queue
from backfill.model.values import checked_int, checked_time

WRAPPER_KEY = "backfill:json"  # backfill_to_jsonb() wraps text that jsonb refuses: {"backfill:json": "<text>"}
_MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DlqFilter:
    """Which entries of the dead letter queue are meant; what is None does not matter.

    Attributes:
        task_identifier: Entries of this task.
        queue_name: Entries of this serial queue; the empty string is the parallel queue.
        job_key: The entry of this job key.
        failed_after: Entries that failed at this moment or later, with a time zone.
        failed_before: Entries that failed before this moment, with a time zone.
        requeued: True: only those that are out as a job; False: only those that are here.
        limit: How many at most, 1 to 10,000.
        offset: How many of the newest to leave out.

    Raises:
        InvalidJob: A value cannot be; the message names it.
    """

    task_identifier: str | None = None
    queue_name: str | None = None
    job_key: str | None = None
    failed_after: datetime | None = None
    failed_before: datetime | None = None
    requeued: bool | None = None
    limit: int = 50
    offset: int = 0

    def __post_init__(self) -> None:
        for field in ("task_identifier", "queue_name", "job_key"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise InvalidJob(f"{field} must be a str, not {value!r} ({type(value).__name__})")
        for field in ("failed_after", "failed_before"):
            value = getattr(self, field)
            if value is not None:
                checked_time(field, value)
        checked_int("limit", self.limit, 1, _MOST)
        checked_int("offset", self.offset, 0, 2**63 - 1)


class DlqJob(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One entry of the dead letter queue.

    Attributes:
        id: The entry's number.
        task_identifier: The task that failed.
        stored_payload: The payload's jsonb text as the table has it; `payload` is its value.
        queue_name: The serial queue of the job; the empty string is the parallel queue.
        priority: The job's priority.
        failure_reason: Why it is here.
        failure_count: How often it came here.
        failed_at: When it last came here.
        original_job_id: The job that failed last.
        job_key: The job's key.
        max_attempts: The job's limit of attempts.
        last_error: The last error, as JSON.
        original_created_at: When the job was added.
        original_run_at: When the job was due.
        requeued_count: How often it was requeued.
        last_requeued_at: When it was last requeued.
        notes: What people wrote about it.
        created_by: The system that moved it here.
        flags: The user's own flags of the job.
        extras: What backfill keeps with the job besides.
        requeued_job_id: The job that the entry is out as; None: it is here.
        history: What later failures and edits replaced, as JSON.
    """

    id: int
    task_identifier: str
    stored_payload: str
    queue_name: str
    priority: int
    failure_reason: str
    failure_count: int
    failed_at: datetime
    original_job_id: int | None = None
    job_key: str | None = None
    max_attempts: int | None = None
    last_error: Any = None
    original_created_at: datetime | None = None
    original_run_at: datetime | None = None
    requeued_count: int = 0
    last_requeued_at: datetime | None = None
    notes: str | None = None
    created_by: str | None = None
    flags: frozenset[str] = NO_FLAGS
    extras: Extras = NO_EXTRAS
    requeued_job_id: int | None = None
    history: Any = None

    @cached_property
    def payload_text(self) -> str:
        """The payload's JSON as the job had it, also where jsonb could not hold it as it was."""
        stored = self.stored_payload
        if WRAPPER_KEY in stored:
            value = decode_payload(stored)
            if isinstance(value, dict) and len(value) == 1 and isinstance(value.get(WRAPPER_KEY), str):
                return str(value[WRAPPER_KEY])
        return stored

    @cached_property
    def payload(self) -> Any:
        """The payload's value, read when it is first asked for.

        Raises:
            MalformedData: Python cannot hold it, such as a number of more than 4,300 digits.
        """
        return decode_payload(self.payload_text)

    @property
    def queue(self) -> Queue:
        """The queue that the job was in."""
        return Queue(self.queue_name or None)

    @property
    def is_out(self) -> bool:
        """Whether the entry was requeued and its job is neither done nor back."""
        return self.requeued_job_id is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DlqJobList:
    """One page of entries, newest first.

    Attributes:
        jobs: The entries.
        total: How many entries fit the filter in all; None when they are more than 10,000.
        offset: How many were left out before these.
        limit: How many were asked for.
    """

    jobs: list[DlqJob]
    total: int | None
    offset: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DlqStats:
    """The dead letter queue in numbers.

    Attributes:
        total_jobs: All entries, those that are out included.
        out_jobs: Entries that are out as a job.
        unique_tasks: How many different tasks they have.
        unique_queues: How many different queues they have.
        avg_failure_count: How often an entry came here, on average; 0 when there is none.
        total_requeued: Requeues of all entries together.
        oldest_failure: When the oldest entry failed; None when there is none.
        newest_failure: When the newest entry failed; None when there is none.
        task_breakdown: Entries by task, the ten largest, largest first.
    """

    total_jobs: int
    out_jobs: int
    unique_tasks: int
    unique_queues: int
    avg_failure_count: float
    total_requeued: int
    oldest_failure: datetime | None
    newest_failure: datetime | None
    task_breakdown: dict[str, int]
