"""What a job's row will hold: a task, a payload and a spec, checked and brought into the columns' form."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeAlias

import asyncpg
import msgspec

from backfill.errors import InvalidJob
from backfill.model import (
    NO_EXTRAS,
    Extras,
    Job,
    JobKeyMode,
    JobSpec,
    JobState,
    Task,
    TaskHandler,
    checked_identifier,
    decode_flags,
    decode_flags_text,
    encode_payload,
    options_of,
)
from backfill.model.flags import NO_FLAGS

TaskName: TypeAlias = str | Task[Any] | type[TaskHandler]
"""What names a task: its identifier, the task itself, or its TaskHandler class."""

_PLAIN = JobSpec()


class Kind(msgspec.Struct, frozen=True):
    """All about a job but its payload, as the columns have it; jobs of one kind share one such value.

    Attributes:
        task: The task's identifier.
        queue: The serial queue's name, or None.
        priority: The priority.
        run_at: When it is due; None = at once, by the database's clock.
        max_attempts: The limit of runs.
        key: The job key, or None.
        mode: What happens when a job with that key is there already.
        batch: Whether the task is known to take a list of items.
        stored_flags: All flags, those that carry the extras included; None when there are none.
        flags: The user's own flags, as they will be read.
        extras: The extras, as they will be read.
    """

    task: str
    queue: str | None
    priority: int
    run_at: datetime | None
    max_attempts: int
    key: str | None
    mode: JobKeyMode
    stored_flags: list[str] | None
    flags: frozenset[str]
    extras: Extras
    batch: bool = False

    @property
    def flags_json(self) -> str | None:
        """The flags as the column has them: a JSON object, or None."""
        if self.stored_flags is None:
            return None
        return msgspec.json.encode(dict.fromkeys(self.stored_flags, True)).decode()

    def job(self, job_id: int, payload: str, created_at: datetime) -> Job:
        """The job that an insert has just made of this kind."""
        return Job(
            id=job_id,
            task_identifier=self.task,
            payload_text=payload,
            priority=self.priority,
            run_at=self.run_at or created_at,
            attempts=0,
            max_attempts=self.max_attempts,
            created_at=created_at,
            updated_at=created_at,
            queue_name=self.queue,
            flags=self.flags,
            extras=self.extras,
        )

    def keyed_job(self, row: Iterable[Any], payload: str) -> Job:
        """The job that ``add_keyed_jobs`` has just given all the settings of this kind, of the columns that it gives."""
        _, job_id, stored, run_at, created_at, updated_at, revision = row
        return Job(
            id=job_id,
            task_identifier=self.task,
            payload_text=payload if stored is None else stored,
            priority=self.priority,
            run_at=run_at or created_at,
            attempts=0,
            max_attempts=self.max_attempts,
            created_at=created_at,
            updated_at=updated_at or created_at,
            queue_name=self.queue,
            key=self.key,
            revision=revision,
            flags=self.flags,
            extras=self.extras,
        )


def kind_of(task: TaskName, spec: JobSpec | None) -> Kind:
    """What a job of this task with this spec is; the spec's settings go before the task's.

    Raises:
        InvalidJob: The identifier cannot be one, or the spec is no JobSpec.
        ConfigurationError: The TaskHandler class is not complete.
    """
    if spec is None and (type(task) is str or isinstance(task, Task | type)):
        return _usual_kind(task)  # type: ignore[arg-type] # a type[TaskHandler] is Hashable
    return _kind_of(task, spec)


@lru_cache(maxsize=1024)
def _usual_kind(task: Any) -> Kind:
    """The kind of the jobs that have no spec: made once for each task, since finding it costs as much as sending one."""
    return _kind_of(task, None)


def _kind_of(task: TaskName, spec: JobSpec | None) -> Kind:
    identifier, spec = settings_of(task, spec)
    stored = spec.stored_flags()
    flags, extras = (NO_FLAGS, NO_EXTRAS) if stored is None else decode_flags(dict.fromkeys(stored))
    return Kind(
        task=identifier,
        queue=spec.queue.name,
        priority=spec.priority,
        run_at=spec.run_at,
        max_attempts=spec.effective_max_attempts(),
        key=spec.job_key,
        mode=spec.job_key_mode,
        stored_flags=stored,
        flags=flags,
        extras=extras,
        batch=not isinstance(task, str) and options_of(task).batch,
    )


def settings_of(task: TaskName, spec: JobSpec | None) -> tuple[str, JobSpec]:
    """The task's identifier, and the spec with the task's settings where it has none of its own.

    Raises:
        InvalidJob: The identifier cannot be one, or the spec is no JobSpec.
        ConfigurationError: The TaskHandler class is not complete.
    """
    if spec is not None and not isinstance(spec, JobSpec):
        raise InvalidJob(f"spec must be a JobSpec, not {spec!r:.100} ({type(spec).__name__})")
    if isinstance(task, str):
        return _checked_name(task), spec or _PLAIN
    options = options_of(task)
    return options.identifier, options.apply_to(spec)


_checked_name = lru_cache(maxsize=1024)(checked_identifier)


def payload_text(payload: Any, kind: Kind | None = None) -> str:
    """The payload's JSON; ``{}`` when it was left out.

    Raises:
        InvalidJob: The value has no faithful JSON form, or it is no list of items for a task that takes one.
    """
    encoded = "{}" if payload is msgspec.UNSET else encode_payload(payload)
    if kind is not None and kind.batch and (encoded[0] != "[" or encoded == "[]"):
        raise InvalidJob(
            f"{kind.task} is a batch task: its payload must be a list of at least one item, not {encoded:.60}"
        )
    return encoded


def job_of(row: asyncpg.Record, payload: str | None = None) -> Job:
    """The job of a row with the columns of a job.

    Args:
        row: The row; ``state`` may be missing.
        payload: The payload's text where the row leaves it null.
    """
    flags, extras = decode_flags_text(row["flags"])
    state = row.get("state")
    return Job(
        id=row["id"],
        task_identifier=row["task_identifier"],
        payload_text=payload if row["payload"] is None and payload is not None else row["payload"],
        priority=row["priority"],
        run_at=row["run_at"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        queue_name=row["queue_name"],
        last_error=row["last_error"],
        key=row["key"],
        revision=row["revision"],
        locked_at=row["locked_at"],
        locked_by=row["locked_by"],
        flags=flags,
        extras=extras,
        state=None if state is None else JobState(state),
    )


def jobs_of(rows: Sequence[asyncpg.Record]) -> list[Job]:
    """The jobs of rows with the columns of a job."""
    return [job_of(row) for row in rows]
