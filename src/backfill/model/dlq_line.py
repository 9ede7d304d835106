"""One line of an export of the dead letter queue, checked before it is imported."""

from datetime import datetime
from typing import Annotated

import msgspec

from backfill.errors import InvalidJob
from backfill.model.values import MAX_ATTEMPTS, MAX_JOB_KEY, MAX_QUEUE_NAME, checked_identifier, checked_text

_HIGHEST_ID = 2**62  # so that numbers for new entries never run out

_Id = Annotated[int, msgspec.Meta(ge=-_HIGHEST_ID, le=_HIGHEST_ID)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Line(msgspec.Struct):
    """The columns of ours; those of users are for the database to check."""

    task_identifier: str
    payload: msgspec.Raw
    failure_reason: str
    id: _Id | None = None
    queue_name: str = "default"
    priority: Annotated[int, msgspec.Meta(ge=-32768, le=32767)] = 0
    job_key: str | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=MAX_ATTEMPTS)] | None = None
    failure_count: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 1
    requeued_count: _Count = 0
    original_job_id: int | None = None
    requeued_job_id: int | None = None
    original_created_at: _Time | None = None
    original_run_at: _Time | None = None
    failed_at: _Time | msgspec.UnsetType = msgspec.UNSET
    last_requeued_at: _Time | None = None
    notes: str | None = None
    created_by: str | None = None


class ImportLine(msgspec.Struct, frozen=True):
    """A line that may be imported.

    Attributes:
        number: Its number in the file, from 1.
        text: Its JSON.
        entry_id: The entry's id; None when the line has none.
        columns: The names of its columns.
    """

    number: int
    text: str
    entry_id: int | None
    columns: frozenset[str]


def import_line(number: int, line: str | bytes) -> ImportLine | None:
    """Return the line, checked; None for an empty one.

    Args:
        number: Its number, from 1.
        line: Its text, with or without its end.

    Raises:
        InvalidJob: It is no entry; the message says the number, and what is wrong where.
    """
    try:
        text = (line.decode() if isinstance(line, bytes) else line).strip()
        if not text:
            return None
        columns = frozenset(_NAMES.decode(text))
        found = _LINE.decode(text)
        checked_identifier(found.task_identifier)
        if found.queue_name:
            checked_text("queue_name", found.queue_name, MAX_QUEUE_NAME)
        if found.job_key:
            checked_text("job_key", found.job_key, MAX_JOB_KEY)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidJob) as error:
        raise InvalidJob(f"line {number}: {error}") from error
    return ImportLine(number, text, found.id, columns)


_NAMES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LINE = msgspec.json.Decoder(_Line)
