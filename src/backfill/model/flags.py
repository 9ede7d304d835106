"""The one codec between what backfill keeps with a job and the job's flags.

Graphile Worker's tables have no room for a retry policy or a timeout, but each job has `flags`, a JSON object of
`{name: true}` that every implementation carries along. Extras are flags named `backfill:<key>=<value>`.

Writing is strict: a value that could not be read back is refused. Reading is tolerant, since anybody may write to
that column: a `backfill:` flag with an unknown key or a value that makes no sense is kept as it is and has no effect.
A job that is added again under its key gets new flags and loses these, whoever adds it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from backfill.errors import InvalidJob
from backfill.model.retry import RetryPolicy
from backfill.model.values import (
    checked_flags,
    checked_int,
    checked_positive,
    checked_text,
    checked_time,
    duration_text,
    parse_duration,
)

PREFIX = "backfill:"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_COUNT = re.compile(r"[1-9][0-9]{0,8}")
_MOST_CRASHES = 999_999_999
_LONGEST_KEPT = 500  # characters of flags whose meaning is kept


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """What backfill keeps with one job beyond Graphile Worker's columns.

    Attributes:
        retry_policy: The job's own waits. Its `max_attempts` is not kept: the job's row has the limit.
        timeout: How long one run may take.
        deadline: The moment, in UTC, after which the job is not to be run.
        traceparent: The W3C trace context of whoever enqueued it.
        crashes: How many workers died while they ran it.
        dlq: Whether it came out of the dead letter queue.
        unknown: The `backfill:` flags that this version does not understand.
    """

    retry_policy: RetryPolicy | None = None
    timeout: timedelta | None = None
    deadline: datetime | None = None
    traceparent: str | None = None
    crashes: int = 0
    dlq: bool = False
    unknown: frozenset[str] = frozenset()


_NAMES_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])  # values stay unread: only the names count
NO_EXTRAS = Extras()
NO_FLAGS: frozenset[str] = frozenset()


def encode_flags(user_flags: Iterable[str], extras: Extras = NO_EXTRAS) -> list[str] | None:
    """Return the names of all flags to store, sorted; None when there are none.

    Raises:
        InvalidJob: A user's flag is empty, has a NUL character or begins with `backfill:`, or an extra could not be
            read back.
    """
    names = set(checked_flags("flags", user_flags))
    if extras is not NO_EXTRAS:
        names.update(PREFIX + extra for extra in _encoded(extras))
        for name in extras.unknown:
            if not checked_text("an unknown flag", name).startswith(PREFIX) or _decoded(name) is not None:
                raise InvalidJob(f"{name!r} is not an unknown flag of backfill's: set it as a flag or as its extra")
            names.add(name)
    return sorted(names) or None


def decode_flags(flags: Mapping[str, object] | None) -> tuple[frozenset[str], Extras]:
    """Split a job's flags into the user's own and backfill's extras; never fails.

    As in Graphile Worker a flag is set by its name being there, whatever its value. Of several values for one key
    the last in the order of names counts, of crash counts the highest.
    """
    if not flags:
        return NO_FLAGS, NO_EXTRAS
    ours = sorted(name for name in flags if name.startswith(PREFIX))
    if not ours:
        return frozenset(flags), NO_EXTRAS
    values: dict[str, Any] = {}
    unknown = set()
    for name in ours:
        found = _decoded(name)
        if found is None:
            unknown.add(name)
        elif found[0] == "crashes":
            values["crashes"] = max(found[1], values.get("crashes", 0))
        else:
            values[found[0]] = found[1]
    return frozenset(flags).difference(ours), Extras(unknown=frozenset(unknown), **values)


def decode_flags_text(text: str | None) -> tuple[frozenset[str], Extras]:
    """Do the same for the column's jsonb text; what is no JSON object counts as no flags."""
    if text is None:
        return NO_FLAGS, NO_EXTRAS
    return _decoded_text(text) if len(text) <= _LONGEST_KEPT else _decoded_text.__wrapped__(text)


@lru_cache(maxsize=500)  # a task's jobs have the same flags, mostly
def _decoded_text(text: str) -> tuple[frozenset[str], Extras]:
    try:
        return decode_flags(_NAMES_DECODER.decode(text))
    except (msgspec.DecodeError, RecursionError):
        return NO_FLAGS, NO_EXTRAS


def has_extras(text: str | None) -> bool:
    """Tell cheaply whether the column's jsonb text can have extras; False is certain."""
    return text is not None and '"backfill:' in text


def _encoded(extras: Extras) -> Iterable[str]:
    """Yield the flags of all known extras that are set, without the prefix."""
    policy = extras.retry_policy
    if policy is not None:
        yield f"retry={policy.preset_name or policy.to_text()}"
    if extras.timeout is not None:
        yield f"timeout={duration_text(checked_positive('timeout', extras.timeout))}"
    if extras.deadline is not None:
        yield f"deadline={checked_time('deadline', extras.deadline).isoformat()}"
    if extras.traceparent is not None:
        if not _TRACEPARENT.fullmatch(extras.traceparent):
            raise InvalidJob(f"traceparent {extras.traceparent!r} is not in the W3C form 00-<32 hex>-<16 hex>-<2 hex>")
        yield f"traceparent={extras.traceparent}"
    if checked_int("crashes", extras.crashes, 0, _MOST_CRASHES):
        yield f"crashes={extras.crashes}"
    if extras.dlq:
        yield "dlq"


def _decoded(name: str) -> tuple[str, Any] | None:
    """Return the extra's field and value, or None when the flag is unknown or makes no sense."""
    key, separator, value = name.removeprefix(PREFIX).partition("=")
    if key == "dlq":
        return None if separator else ("dlq", True)
    reader = _READERS.get(key)
    if reader is None:
        return None
    field, read = reader
    try:
        return field, read(value)
    except (ValueError, OverflowError):
        return None


def _read_timeout(text: str) -> timedelta:
    return checked_positive("timeout", parse_duration(text))


def _read_deadline(text: str) -> datetime:
    return checked_time("deadline", datetime.fromisoformat(text))


def _read_traceparent(text: str) -> str:
    if not _TRACEPARENT.fullmatch(text):
        raise ValueError(text)
    return text


def _read_crashes(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(text)
    return int(text)


_READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "retry": ("retry_policy", lru_cache(maxsize=256)(RetryPolicy.parse)),
    "timeout": ("timeout", _read_timeout),
    "deadline": ("deadline", _read_deadline),
    "traceparent": ("traceparent", _read_traceparent),
    "crashes": ("crashes", _read_crashes),
}
