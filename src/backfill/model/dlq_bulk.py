"""Changes to entries of the dead letter queue, and how far a change of many has come."""

from dataclasses import dataclass
from typing import Any

import msgspec

from backfill.errors import InvalidJob
from backfill.model.payload import encode_payload
from backfill.model.priority import Priority
from backfill.model.queue import Queue
from backfill.model.values import MAX_ATTEMPTS, checked_identifier, checked_int, checked_text


@dataclass(frozen=True, slots=True, kw_only=True)
class DlqEdit:
    """What is to be changed in an entry of the dead letter queue; what is left out stays. Checked as a job's values are.

    Attributes:
        payload: The new payload, any JSON value.
        task_identifier: The new task.
        queue: The new queue: a Queue, a serial queue's name, or the empty string for the parallel queue.
        priority: The new priority.
        max_attempts: The new limit of attempts.
        notes: The new notes; the empty string for none.
        add_note: A text to add to the notes, on a line of its own.

    Raises:
        InvalidJob: A value cannot be, there is nothing to change, or notes are both replaced and added to.
    """

    payload: Any = msgspec.UNSET
    task_identifier: str | None = None
    queue: Queue | str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    notes: str | None = None
    add_note: str | None = None

    def __post_init__(self) -> None:
        self.columns()

    @property
    def only_notes(self) -> bool:
        """Whether nothing that the job will be made of is to be changed."""
        return self.columns()[:5] == (None,) * 5

    def columns(self) -> tuple[str | None, str | None, str | None, int | None, int | None, str | None, bool]:
        """Payload, task, queue, priority, limit, notes as the columns are to have them, and whether notes are added."""
        queue = None if self.queue is None else Queue.coerce(self.queue or None)
        if self.notes is not None and self.add_note is not None:
            raise InvalidJob("notes and add_note contradict each other: replace the notes, or add to them")
        values = (
            None if self.payload is msgspec.UNSET else encode_payload(self.payload),
            None if self.task_identifier is None else checked_identifier(self.task_identifier),
            None if queue is None else queue.name or "",
            None if self.priority is None else int(Priority(self.priority)),
            None if self.max_attempts is None else checked_int("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS),
            checked_notes(self.notes) if self.add_note is None else checked_text("add_note", self.add_note),
        )
        if values == (None,) * len(values):
            raise InvalidJob(
                "there is nothing to change: give a payload, task_identifier, queue, priority, max_attempts or notes"
            )
        return (*values, self.add_note is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DlqProgress:
    """How far a change of many entries has come, told after each page.

    Attributes:
        done: How many entries have been requeued or deleted.
        skipped: How many stayed: their key is in use, or somebody else was faster.
        total: How many were chosen when it began.
        last_id: The id of the last entry that was looked at; ``after=last_id`` goes on behind it.
        skipped_ids: Those of this page that stayed.
    """

    done: int
    skipped: int
    total: int
    last_id: int
    skipped_ids: tuple[int, ...] = ()


def checked_notes(value: str | None) -> str | None:
    """Return notes, which may be empty, when PostgreSQL can hold them."""
    return checked_text("notes", value) if value else value
