"""Checks and texts that the value types share: each refuses with the field's name and the value."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from backfill.errors import InvalidJob

MAX_ATTEMPTS = 32767  # the column is an int2
MAX_IDENTIFIER = 128  # the limits of Graphile Worker's tables
MAX_QUEUE_NAME = 128
MAX_JOB_KEY = 512

_DURATION = re.compile(r"([0-9]{1,14})(?:\.([0-9]{1,6}))?")
_MICROSECOND = timedelta(microseconds=1)


def checked_text(field: str, value: object, max_length: int | None = None) -> str:
    """Return `value` when PostgreSQL can hold it as a non-empty text of at most `max_length` characters.

    Raises:
        InvalidJob: It is no str, empty, too long, or has a NUL character or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise InvalidJob(f"{field} must be a str, not {value!r} ({type(value).__name__})")
    if not value:
        raise InvalidJob(f"{field} must not be empty")
    if max_length is not None and len(value) > max_length:
        raise InvalidJob(f"{field} has {len(value)} characters, at most {max_length} are allowed: {value[:60]!r}…")
    if "\x00" in value:
        raise InvalidJob(f"{field} {value!r} has a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidJob(f"{field} {value!r} has half of a surrogate pair, which is no valid text") from error
    return value


def checked_identifier(value: object) -> str:
    """Return `value` when it can be a task identifier: a text of 1 to 128 characters without NUL."""
    return checked_text("task identifier", value, MAX_IDENTIFIER)


def checked_int(field: str, value: object, low: int, high: int) -> int:
    """Return `value` when it is an int (a bool is none) of `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJob(f"{field} must be an int, not {value!r} ({type(value).__name__})")
    if not low <= value <= high:
        raise InvalidJob(f"{field} must be {low} to {high}, not {value}")
    return value


def checked_time(field: str, value: object) -> datetime:
    """Return `value` in UTC when it is a datetime with a time zone."""
    if not isinstance(value, datetime):
        raise InvalidJob(f"{field} must be a datetime, not {value!r} ({type(value).__name__})")
    if value.utcoffset() is None:
        raise InvalidJob(f"{field} {value.isoformat()} has no time zone: use datetime.now(UTC) or set tzinfo")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidJob(f"{field} {value.isoformat()} cannot be expressed in UTC") from error


def checked_positive(field: str, value: object) -> timedelta:
    """Return `value` when it is a timedelta over zero."""
    if not isinstance(value, timedelta):
        raise InvalidJob(f"{field} must be a timedelta, not {value!r} ({type(value).__name__})")
    if value <= timedelta(0):
        raise InvalidJob(f"{field} must be over zero, not {duration_text(value)} s")
    return value


def checked_flags(field: str, value: Iterable[str]) -> frozenset[str]:
    """Return `value` as a set of flags of the user's own: texts that do not begin with `backfill:`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidJob(f"{field} must be a set of names, not {value!r} ({type(value).__name__})")
    names = tuple(value)  # first: an unhashable member is to be refused by name
    for name in names:
        if checked_text(f"a name in {field}", name).startswith("backfill:"):
            raise InvalidJob(f"{field} has {name!r}: names that begin with 'backfill:' are reserved")
    return frozenset(names)


def duration_text(value: timedelta) -> str:
    """Return `value` as seconds in decimal, exact to the microsecond: `90`, `0.25`."""
    sign = "-" if value < timedelta(0) else ""
    seconds, micros = divmod(abs(value) // _MICROSECOND, 1_000_000)
    return f"{sign}{seconds}.{micros:06d}".rstrip("0").rstrip(".")


def parse_duration(text: str) -> timedelta:
    """Read the text of a duration that is not negative, as `duration_text` writes it.

    Raises:
        ValueError: The text is no such number or too large.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of seconds")
    seconds, fraction = match.groups()
    try:
        return timedelta(seconds=int(seconds), microseconds=int((fraction or "0").ljust(6, "0")))
    except OverflowError as error:
        raise ValueError(f"{text!r} seconds are too many") from error
